import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from peft_rag.errors import ConfigError, RetrievalError
from peft_rag.fusion.base import Memory, Outputs, Split
from peft_rag.fusion.datastore import unit
from peft_rag.fusion.knn import KnnFusion, neighbour_log_probs
from peft_rag.fusion.mixing import mix
from peft_rag.retrieval.base import Neighbours
from peft_rag.tasks.base import Example
from peft_rag.tasks.text_classification import TextClassification

CLASSES = 4
SINGLE = TextClassification(labels=("a", "b", "c", "d"))
MULTI = TextClassification(labels=("a", "b", "c", "d"), multi_label=True)
BOTH = pytest.mark.parametrize("task", [SINGLE, MULTI], ids=["single-label", "multi-label"])


def examples(count):
    return [Example(str(number), "x") for number in range(count)]


def document_targets(task, count, seed=0):
    draw = torch.Generator().manual_seed(seed)
    shape = (count, CLASSES) if task.multi_label else (count,)
    targets = torch.randint(0, 2 if task.multi_label else CLASSES, shape, generator=draw)
    if task.multi_label:
        targets[:, 0] = 1
    return targets


def some_neighbours(queries=6, k=5, documents=20, seed=0):
    """Neighbours nearest first; the second query has three of them, the last none at all."""
    draw = np.random.default_rng(seed)
    positions = np.stack([draw.permutation(documents)[:k] for _ in range(queries)])
    scores = -np.sort(-draw.uniform(0.2, 1.0, (queries, k)).astype(np.float32), axis=1)
    positions[1, 3:], scores[1, 3:] = -1, -np.inf
    positions[-1], scores[-1] = -1, -np.inf
    return Neighbours(positions.astype(np.int64), scores)


def model_outputs(task, count, seed=0):
    draw = torch.Generator().manual_seed(seed)
    log_probs = task.log_probs(2 * torch.randn(count, CLASSES, generator=draw))
    return Outputs(log_probs, torch.randn(count, 8, generator=draw))


def loop_shares(pairs, temperature):
    """softmax(s/T) over one query's neighbours."""
    highest = max(score for _, score in pairs)
    raised = [math.exp((score - highest) / temperature) for _, score in pairs]
    return [value / sum(raised) for value in raised]


def loop_votes(pairs, targets, task, temperature):
    """p_kNN of one query, as nested lists; None without neighbours."""
    if not pairs:
        return None
    shares = loop_shares(pairs, temperature)
    if not task.multi_label:
        return [
            sum(share for share, (place, _) in zip(shares, pairs, strict=True) if targets[place] == number)
            for number in range(CLASSES)
        ]
    present = [
        sum(share for share, (place, _) in zip(shares, pairs, strict=True) if targets[place][number] == 1)
        for number in range(CLASSES)
    ]
    return [[1 - share, share] for share in present]


def loop_mixed(votes, own, weight):
    """λ·p_kNN + (1-λ)·p_model of one query."""
    own = torch.as_tensor(own, dtype=torch.float64)
    return own if votes is None else weight * torch.tensor(votes, dtype=torch.float64) + (1 - weight) * own


@BOTH
@pytest.mark.parametrize("temperature", [0.01, 0.2, 5.0])
def test_neighbours_probabilities_equal_a_plain_loop(task, temperature):
    found, targets = some_neighbours(), document_targets(task, 20)
    given = neighbour_log_probs(found, Memory(targets), task, temperature)
    assert given.shape == ((6, CLASSES, 2) if task.multi_label else (6, CLASSES))
    for row in range(5):
        expected = loop_votes(found.row(row), targets.tolist(), task, temperature)
        assert torch.allclose(given[row].exp(), torch.tensor(expected), atol=1e-6)
        assert torch.allclose(given[row].exp().sum(-1), torch.ones(()))
    assert given[5].isnan().all()


def test_neighbours_probabilities_do_not_see_the_target_that_padding_points_at():
    found, targets = some_neighbours(), document_targets(SINGLE, 20)
    other = targets.clone()
    other[0] = (other[0] + 1) % CLASSES
    assert 0 not in found.positions[1]
    given, again = (neighbour_log_probs(found, Memory(side), SINGLE, 0.1) for side in (targets, other))
    assert torch.equal(given[1], again[1])


@BOTH
@pytest.mark.parametrize("weight", [0.0, 0.05, 0.5, 0.95, 1.0])
def test_mix_equals_a_plain_loop_also_where_a_probability_is_zero_or_no_neighbour_is_there(task, weight):
    found, targets = some_neighbours(), document_targets(task, 20)
    votes = neighbour_log_probs(found, Memory(targets), task, 0.02)
    assert (votes == -math.inf).any()
    own = model_outputs(task, 6).log_probs
    mixed = mix(own, votes, weight)
    assert not mixed.isnan().any()
    assert torch.allclose(mixed.exp().sum(-1), torch.ones(()), atol=1e-5)
    for row in range(6):
        expected = loop_mixed(loop_votes(found.row(row), targets.tolist(), task, 0.02), own[row].exp(), weight)
        assert torch.allclose(mixed[row].exp().double(), expected, atol=1e-6)


def test_mix_is_exact_at_both_ends():
    own = model_outputs(SINGLE, 5).log_probs
    votes = model_outputs(SINGLE, 5, seed=1).log_probs
    assert torch.equal(mix(own, votes, 0), own)
    assert torch.equal(mix(own, votes, 1), votes)


def test_mix_keeps_the_models_opinion_where_neighbours_rule_a_class_out():
    own = torch.tensor([[1e-30, 1.0]]).log()
    mixed = mix(own, torch.tensor([[0.0, 1.0]]).log(), 0.5)
    assert mixed[0].tolist() == pytest.approx([math.log(0.5e-30), 0.0], rel=1e-5)


def test_unit_vectors_have_length_one_in_single_precision():
    vectors = unit(torch.tensor([[3.0, 4.0], [0.0, 0.0]], dtype=torch.bfloat16))
    assert vectors.dtype == np.float32
    assert vectors.tolist() == [[pytest.approx(0.6), pytest.approx(0.8)], [0.0, 0.0]]


@BOTH
@pytest.mark.parametrize("space", ["tuned", "retriever"])
def test_combine_equals_a_plain_loop_in_both_spaces(task, space):
    """In the tuned space a query's neighbours are the k allowed documents of the highest cosine."""
    draw = np.random.default_rng(3)
    vectors = torch.tensor(draw.normal(size=(20, 8)))
    targets, outputs, found = document_targets(task, 20), model_outputs(task, 6), some_neighbours()
    forbidden = [frozenset(draw.permutation(20)[:number].tolist()) for number in (0, 1, 5, 17, 18, 20)]
    fusion = KnnFusion(space=space, k=4, temperature=0.1, weight=0.6)
    if space == "tuned":
        split = Split(examples(6), None, forbidden)
        memory = Memory(targets, vectors)
    else:
        split = Split(examples(6), found)
        memory = Memory(targets)
    combined = fusion.combine(outputs, split, memory, task)
    shown = fusion.shown(outputs, split, memory)

    for row in range(6):
        if space == "tuned":
            feature = outputs.features[row].double().numpy()
            cosines = {
                place: float(vector @ feature / np.linalg.norm(feature) / np.linalg.norm(vector))
                for place, vector in enumerate(vectors.numpy())
                if place not in forbidden[row]
            }
            pairs = sorted(cosines.items(), key=lambda pair: -pair[1])[:4]
        else:
            pairs = found.row(row)[:4]
        votes = loop_votes(pairs, targets.tolist(), task, 0.1)
        expected = loop_mixed(votes, outputs.log_probs[row].exp(), 0.6)
        assert torch.allclose(combined[row].exp().double(), expected, atol=1e-5)
        assert [one.position for one in shown[row]] == [place for place, _ in pairs]
        assert [one.score for one in shown[row]] == pytest.approx([score for _, score in pairs], abs=1e-6)
        weights = [0.6 * share for share in loop_shares(pairs, 0.1)] if pairs else []
        assert [one.weight for one in shown[row]] == pytest.approx(weights, abs=1e-5)
        assert sum(one.weight for one in shown[row]) == pytest.approx(0.6 if pairs else 0.0)


def test_forbidden_document_neither_votes_nor_is_shown_however_near():
    vectors = torch.eye(3, 8)
    memory = Memory(torch.tensor([0, 1, 2]), vectors)
    outputs = Outputs(torch.full((1, CLASSES), 0.25).log(), vectors[:1])
    fusion = KnnFusion(k=1, temperature=0.1, weight=1.0)
    free = fusion.combine(outputs, Split(examples(1)), memory, SINGLE)
    held = fusion.combine(outputs, Split(examples(1), None, [{0}]), memory, SINGLE)
    assert (free.argmax().item(), held.argmax().item()) == (0, 1)
    assert [one.position for one in fusion.shown(outputs, Split(examples(1), None, [{0}]), memory)[0]] == [1]


def clusters(count, seed=0):
    """Vectors around one centre a class, and the classes."""
    draw = np.random.default_rng(seed)
    centres = np.eye(CLASSES, 8)
    wanted = np.arange(count) % CLASSES
    vectors = torch.tensor(centres[wanted] + 0.1 * draw.normal(size=(count, 8)), dtype=torch.float32)
    return torch.nn.functional.normalize(vectors, dim=-1), torch.tensor(wanted)


def test_fit_leaves_noisy_neighbours_out_when_the_model_knows():
    vectors, targets = clusters(60)
    memory = Memory(document_targets(SINGLE, 60, seed=9), vectors)
    log_probs = torch.where(SINGLE.vote(targets) > 0, 0.97, 0.01).log()
    outputs = Outputs(log_probs, clusters(60, seed=1)[0])
    fitted = KnnFusion().fit(outputs, Split(examples(60)), memory, SINGLE, targets)
    assert fitted.weight == 0
    assert torch.equal(fitted.combine(outputs, Split(examples(60)), memory, SINGLE), log_probs)


@BOTH
def test_fit_trusts_neighbours_when_the_model_is_noise(task):
    vectors, classes = clusters(60)
    targets = torch.nn.functional.one_hot(classes, CLASSES) if task.multi_label else classes
    outputs = Outputs(model_outputs(task, 60).log_probs, clusters(60, seed=1)[0])
    fitted = KnnFusion().fit(outputs, Split(examples(60)), Memory(targets, vectors), task, targets)
    assert fitted.weight >= 0.9
    combined = fitted.combine(outputs, Split(examples(60)), Memory(targets, vectors), task)
    assert torch.equal(combined.argmax(-1), targets)


def test_fit_chooses_what_a_plain_search_and_the_plain_rule_choose():
    vectors, classes = clusters(40)
    noisy = torch.where(
        torch.rand(40, generator=torch.Generator().manual_seed(0)) < 0.3, (classes + 1) % CLASSES, classes
    )
    knowing = model_outputs(SINGLE, 40).log_probs + 2 * SINGLE.vote(classes)
    outputs = Outputs(knowing.log_softmax(-1), clusters(40, seed=1)[0])
    memory, split = Memory(noisy, vectors), Split(examples(40))
    fitted = KnnFusion(k=2).fit(outputs, split, memory, SINGLE, classes)
    losses = {}
    for temperature in (0.01, 0.02, 0.05, 0.1, 0.2):
        for step in range(21):
            tried = KnnFusion(k=2, temperature=temperature, weight=step / 20)
            mixed = tried.combine(outputs, split, memory, SINGLE)
            likelihoods = [max(mixed[row, wanted].item(), -100.0) for row, wanted in enumerate(classes.tolist())]
            losses[tried] = -sum(likelihoods) / len(likelihoods)
    usual = KnnFusion(k=2, temperature=0.05, weight=0.3)
    right = {tried: tried.combine(outputs, split, memory, SINGLE).argmax(-1) == classes for tried in losses}
    best = max(losses, key=lambda tried: (right[tried].sum().item(), -losses[tried]))
    gains = [float(a) - float(b) for a, b in zip(right[best], right[usual], strict=True)]
    mean = sum(gains) / 40
    error = math.sqrt(sum((gain - mean) ** 2 for gain in gains) / 39 / 40)
    weights = [replace(usual, weight=step / 20) for step in range(21)]
    merits = {tried: (right[tried].sum().item(), -losses[tried]) for tried in weights}
    harmful = merits[usual] < merits[weights[0]]
    otherwise = max(weights, key=lambda tried: merits[tried]) if harmful else usual
    wanted = best if mean > 2 * error else otherwise
    assert losses[fitted] == pytest.approx(losses[wanted], rel=1e-5)
    assert 0 < fitted.weight < 1


def test_fit_takes_the_usual_setting_where_few_examples_cannot_tell_it_from_the_best():
    """One example more out of eight is luck; forty more out of a hundred are none."""
    vectors, classes = clusters(100)
    memory = Memory(classes, vectors)
    unsure = Outputs(torch.full((100, CLASSES), 0.25).log(), clusters(100, seed=1)[0])
    confident = torch.full((100, CLASSES), 0.1 / 3)
    wrong = (classes + 1) % CLASSES
    confident[torch.arange(100), classes] = 0.9
    few = slice(0, 8)
    confident[0, classes[0]], confident[0, wrong[0]] = 0.1 / 3, 0.9
    fitted = KnnFusion().fit(
        Outputs(confident[few].log(), unsure.features[few]), Split(examples(8)), memory, SINGLE, classes[few]
    )
    assert (fitted.k, fitted.temperature, fitted.weight) == (16, 0.05, 0.3)
    many = torch.arange(100) < 40
    confident[many, classes[many]], confident[many, wrong[many]] = 0.1 / 3, 0.9
    fitted = KnnFusion().fit(Outputs(confident.log(), unsure.features), Split(examples(100)), memory, SINGLE, classes)
    assert fitted.weight > 0.3
    combined = fitted.combine(Outputs(confident.log(), unsure.features), Split(examples(100)), memory, SINGLE)
    assert torch.equal(combined.argmax(-1), classes)


def test_fit_prefers_no_retrieval_where_neighbours_only_take_from_what_is_known():
    targets = torch.zeros(4, dtype=torch.long)
    sure = Outputs(torch.tensor([[0.0, -math.inf, -math.inf, -math.inf]] * 4), torch.eye(4))
    fitted = KnnFusion().fit(sure, Split(examples(4)), Memory(1 - targets, torch.eye(4)), SINGLE, targets)
    assert (fitted.k, fitted.temperature, fitted.weight) == (4, 0.05, 0.0)


def test_fit_keeps_what_was_given_and_asks_no_more_neighbours_than_there_are_documents():
    vectors, targets = clusters(5)
    outputs = Outputs(model_outputs(SINGLE, 5).log_probs, vectors)
    fitted = KnnFusion(temperature=0.3, weight=0.7).fit(
        outputs, Split(examples(5)), Memory(targets, vectors), SINGLE, targets
    )
    assert (fitted.temperature, fitted.weight) == (0.3, 0.7)
    assert fitted.k in (1, 2, 4)


def test_fit_chooses_even_where_no_setting_can_explain_every_target():
    """λ = 1 is given, and two targets have no neighbour of their class: the rest still decides."""
    vectors, classes = clusters(40)
    targets = classes.clone()
    targets[:2] = 3 - targets[:2]
    memory = Memory(torch.where(classes == 3, 2, classes), vectors)
    split = Split(examples(40), Neighbours(*_nearest(vectors)))
    uniform = Outputs(torch.full((40, CLASSES), 0.25).log(), torch.zeros(40, 0))
    fitted = KnnFusion(space="retriever", weight=1.0).fit(uniform, split, memory, SINGLE, targets)
    assert fitted.k is not None
    assert fitted.temperature is not None
    combined = fitted.combine(uniform, split, memory, SINGLE)
    known = classes != 3
    assert (combined.argmax(-1) == classes)[known].all()


def _nearest(vectors):
    scores = (vectors @ vectors.T).numpy()
    order = np.argsort(-scores, axis=1, kind="stable")
    return order.astype(np.int64), np.take_along_axis(scores, order, axis=1)


def test_unfitted_fusion_is_the_model_and_shows_nothing():
    outputs, split = model_outputs(SINGLE, 3), Split(examples(3))
    for fusion in (KnnFusion(), KnnFusion(weight=0.5), KnnFusion(k=3, temperature=0.1)):
        assert fusion.combine(outputs, split, None, SINGLE) is outputs.log_probs
        assert fusion.shown(outputs, split, None) == [[], [], []]


def test_weight_zero_gives_the_model_bit_for_bit():
    vectors, targets = clusters(12)
    outputs = Outputs(model_outputs(SINGLE, 3).log_probs, vectors[:3])
    fusion = KnnFusion(k=2, temperature=0.1, weight=0.0)
    assert torch.equal(fusion.combine(outputs, Split(examples(3)), Memory(targets, vectors), SINGLE), outputs.log_probs)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"space": "frozen"}, "fusion.space is 'frozen'. Choose tuned or retriever."),
        ({"k": 0}, "fusion.k is 0; at least one neighbour must vote. Use --fusion none for none."),
        ({"temperature": 0.0}, "fusion.temperature is 0.0; it must be above 0."),
        ({"weight": 1.5}, "fusion.weight is 1.5; λ lies in [0, 1]."),
        ({"weight": -0.1}, "fusion.weight is -0.1; λ lies in [0, 1]."),
        ({"weight": math.nan}, "fusion.weight is nan; λ lies in [0, 1]."),
        ({"temperature": math.nan}, "fusion.temperature is nan; it must be above 0."),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ConfigError) as caught:
        KnnFusion(**options)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("space", "memory", "message"),
    [
        (
            "retriever",
            Memory(torch.zeros(3, dtype=torch.long)),
            "fusion 'knn' was given no neighbours. Pass the corpus it was trained with.",
        ),
        (
            "tuned",
            Memory(torch.zeros(3, dtype=torch.long)),
            "neighbours are searched in the tuned space, but the corpus was not encoded.",
        ),
        (
            "tuned",
            None,
            "fusion 'knn' needs the labelled corpus it was trained with. Pass it with --corpus.",
        ),
    ],
)
def test_combine_without_what_it_needs_says_what_is_missing(space, memory, message):
    fusion = KnnFusion(space=space, k=1, temperature=0.1, weight=0.5)
    with pytest.raises(RetrievalError) as caught:
        fusion.combine(model_outputs(SINGLE, 1), Split(examples(1)), memory, SINGLE)
    assert str(caught.value) == message


def test_needs_follow_from_the_space():
    assert (KnnFusion().neighbours_wanted, KnnFusion().needs_features, KnnFusion().documents_needed) == (0, True, 1)
    retriever = KnnFusion(space="retriever")
    assert (retriever.neighbours_wanted, retriever.needs_features) == (64, False)
    assert (KnnFusion(space="retriever", k=7).neighbours_wanted, KnnFusion(k=7).documents_needed) == (7, 7)
    assert KnnFusion().needs_labels
    assert not KnnFusion().reads_neighbours


def test_fusion_survives_json():
    fusion = KnnFusion(space="retriever", k=3, temperature=0.1, weight=0.25)
    assert KnnFusion.from_dict(json.loads(json.dumps(fusion.to_dict()))) == fusion
