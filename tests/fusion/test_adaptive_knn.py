"""λ for each decision: evidence and network against plain loops in float64, and what is learned against any fixed λ."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from peft_rag.decisions import Decisions
from peft_rag.errors import ConfigError
from peft_rag.fusion.adaptive_knn import AdaptiveKnnFusion
from peft_rag.fusion.base import Memory, Outputs, Split
from peft_rag.fusion.evidence import evidence, kinds_of
from peft_rag.fusion.knn import KnnFusion
from peft_rag.fusion.mixing import mix
from peft_rag.fusion.next_token import NeighbourTokens
from peft_rag.fusion.share_lesson import Lesson
from peft_rag.fusion.share_network import ShareNetwork
from peft_rag.retrieval.base import Neighbours
from peft_rag.tasks.base import Example
from peft_rag.testing import TINY_BACKBONES, check_fusion
from tests.fusion.test_knn import (
    BOTH,
    CLASSES,
    SINGLE,
    document_targets,
    loop_mixed,
    loop_shares,
    loop_votes,
    model_outputs,
    some_neighbours,
)


def examples(count):
    return [Example(str(number), f"text {number}") for number in range(count)]


def kind_of(row):
    return tuple(row) if isinstance(row, list) else row


def loop_evidence(pairs, targets, k, own=None):
    """Distances, numbers of different labels, confidence and entropy of one decision, in plain Python."""
    distances, counts, seen = [], [], set()
    for rank in range(k):
        if rank < len(pairs):
            seen.add(kind_of(targets[pairs[rank][0]]))
        score = pairs[min(rank, len(pairs) - 1)][1] if pairs else 1.0
        distances.append(1 - score)
        counts.append(len(seen))
    if own is None:
        return [*distances, *counts]
    each = own if isinstance(own[0], list) else [own]
    confidence = sum(max(row) for row in each)
    entropy = -sum(math.exp(value) * value for row in each for value in row)
    return [*distances, *counts, confidence, entropy]


def loop_share(network, numbers):
    """σ(w₂·tanh(W₁·(x - μ)/s + b₁) + b₂) of one decision, in plain Python."""
    scaled = [
        (x - mean) / spread
        for x, mean, spread in zip(numbers, network.mean.tolist(), network.spread.tolist(), strict=True)
    ]
    logit = network.outer_bias.item()
    for weights, bias, outer in zip(
        network.inner.tolist(), network.inner_bias.tolist(), network.outer.tolist(), strict=True
    ):
        logit += outer * math.tanh(sum(w * x for w, x in zip(weights, scaled, strict=True)) + bias)
    return 1 / (1 + math.exp(-logit))


def some_network(size, hidden=5, seed=0):
    draw = torch.Generator().manual_seed(seed)

    def numbers(*shape):
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    return ShareNetwork(
        numbers(size), numbers(size).abs() + 0.5, numbers(hidden, size), numbers(hidden), numbers(hidden), numbers(())
    )


@BOTH
def test_evidence_equals_a_plain_loop_with_missing_neighbours_none_and_ties(task):
    found, targets = some_neighbours(k=7), document_targets(task, 20)
    found.scores[2, 1:4] = found.scores[2, 1]
    own = model_outputs(task, 6).log_probs.double()
    kinds = kinds_of(Memory(targets))
    for k in (1, 4, 7, 9):
        given = evidence(found, kinds, k, own)
        bare = evidence(found, kinds, k)
        for row in range(6):
            expected = loop_evidence(found.row(row)[:k], targets.tolist(), k, own[row].tolist())
            assert given[row].tolist() == pytest.approx(expected, abs=1e-9)
            assert bare[row].tolist() == pytest.approx(expected[:-2], abs=1e-9)


def test_evidence_of_a_sure_model_and_of_single_words_is_finite():
    own = torch.tensor([[0.0, -math.inf], [-math.inf, 0.0]])
    given = evidence(Neighbours.of_rows([[(0, 0.5)], []]), torch.tensor([3]), 2, own)
    assert given.tolist() == [[0.5, 0.5, 1, 1, 0, 0], [0, 0, 0, 0, 0, 0]]
    words = Memory(torch.tensor([[4, 1], [4, 0], [2, 0]]), decisions=Decisions([2, 1]))
    assert kinds_of(words).tolist() == [4, 4, 2]


@BOTH
@pytest.mark.parametrize("space", ["tuned", "retriever"])
def test_combine_and_weights_equal_a_plain_loop(task, space):
    draw = np.random.default_rng(3)
    vectors, targets = torch.tensor(draw.normal(size=(20, 8))), document_targets(task, 20)
    outputs, found = model_outputs(task, 6), some_neighbours()
    outputs = replace(outputs, log_probs=outputs.log_probs.double().log_softmax(-1))
    memory = Memory(targets, vectors if space == "tuned" else None)
    split = Split(examples(6), None if space == "tuned" else found)
    fusion = AdaptiveKnnFusion(
        space=space, k=4, temperature=0.1, weight=0.0, adapts=True, network=some_network(2 * 4 + 2)
    )
    combined, shown = fusion.combine(outputs, split, memory, task), fusion.shown(outputs, split, memory)
    asked = fusion.voters(outputs, split, memory)
    shares = set()
    for row in range(6):
        pairs = asked.row(row)
        share = loop_share(fusion.network, loop_evidence(pairs, targets.tolist(), 4, outputs.log_probs[row].tolist()))
        votes = loop_votes(pairs, targets.tolist(), task, 0.1)
        expected = loop_mixed(votes, outputs.log_probs[row].exp(), share)
        assert torch.allclose(combined[row].exp(), expected, atol=1e-9, rtol=0)
        assert [one.position for one in shown[row]] == [place for place, _ in pairs]
        weights = [share * one for one in loop_shares(pairs, 0.1)] if pairs else []
        assert [one.weight for one in shown[row]] == pytest.approx(weights, abs=1e-9)
        shares.add(round(share, 6))
    assert len(shares) == 6


def test_gradients_of_the_loss_equal_finite_differences():
    """A target that no neighbour votes for, and a decision without any neighbour, among the others."""
    votes = torch.tensor(
        [[0.9, 0.1, 0, 0], [0, 0, 0.5, 0.5], [math.nan] * 4, [1.0, 0, 0, 0]], dtype=torch.float64
    ).log()
    own = torch.randn(4, CLASSES, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    targets, numbers = torch.tensor([0, 1, 2, 0]), torch.randn(4, 3, dtype=torch.float64)
    lesson = Lesson(numbers, own, votes, SINGLE, targets, examples(4))
    network = some_network(3)
    assert torch.autograd.gradcheck(
        lambda inner, outer, bias: lesson.loss(
            torch.arange(4), replace(network, inner=inner, outer=outer, outer_bias=bias).share(numbers)
        ),
        [one.clone().requires_grad_() for one in (network.inner, network.outer, network.outer_bias)],
    )


def two_kinds(count, seed):
    """Half of the examples lie in clusters of their class, which the model cannot tell; of the others it can."""
    draw = np.random.default_rng(seed)
    classes, near = draw.integers(0, CLASSES, count), np.arange(count) % 2 == 0
    vectors = np.concatenate([np.eye(CLASSES)[classes] * near[:, None], np.zeros((count, 8))], axis=1)
    vectors += np.where(near[:, None], 0.1, 1.0) * draw.normal(size=vectors.shape) * np.r_[[0.3] * 4, [1.0] * 8]
    wanted = torch.nn.functional.one_hot(torch.tensor(classes), CLASSES)
    knowing = torch.tensor(np.where(near, 0.5, 3.0))[:, None]
    own = (knowing * wanted + torch.tensor(draw.normal(size=wanted.shape))).log_softmax(-1)
    return torch.tensor(classes), torch.tensor(vectors), own, near


def world(seed=0, validation=160):
    labels, vectors, _, near = two_kinds(160, seed)
    draw = np.random.default_rng(seed)
    labels = torch.where(torch.tensor(near), labels, torch.tensor(draw.integers(0, CLASSES, 160)))
    known, (targets, features, own, _) = Memory(labels, vectors), two_kinds(validation, seed + 1)
    return known, Outputs(own, features), targets


OPEN = AdaptiveKnnFusion(k=8, temperature=0.1, weight=0.5)


def test_where_neighbours_deserve_trust_by_half_no_fixed_weight_is_as_good():
    memory, outputs, targets = world()
    fitted = OPEN.fit(outputs, Split(examples(len(targets))), memory, SINGLE, targets)
    assert fitted.adapts
    asked, features, own, near = two_kinds(400, seed=9)
    later, split = Outputs(own, features), Split(examples(400))
    merit = SINGLE.merit(fitted.combine(later, split, memory, SINGLE), asked)
    for step in range(21):
        fixed = KnnFusion(k=8, temperature=0.1, weight=step / 20).combine(later, split, memory, SINGLE)
        right, likely = SINGLE.merit(fixed.clamp(min=-100), asked)
        assert merit[0] > right + 0.02
        assert merit[1] > likely + 0.2
    share = fitted.share(fitted.voters(later, split, memory), memory, own)
    assert share[torch.tensor(near)].median() > 0.8
    assert share[torch.tensor(~near)].median() < 0.2


def test_what_is_learned_depends_on_the_seed_alone():
    memory, outputs, targets = world(validation=60)
    split, state = Split(examples(60)), torch.random.get_rng_state()
    first, again, other = (
        replace(OPEN, adapts=True, seed=seed).fit(outputs, split, memory, SINGLE, targets).tensors()
        for seed in (0, 0, 1)
    )
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["inner"], other["inner"])
    assert torch.equal(state, torch.random.get_rng_state())


def test_what_a_decision_must_not_see_teaches_nothing():
    """With doubles of the validation texts in the corpus, each forbidden to its own: as if they were not there."""
    memory, outputs, targets = world(validation=60)
    doubled = Memory(torch.cat([targets, memory.targets]), torch.cat([outputs.features, memory.features]))
    split = Split(examples(60))
    forbidden = [frozenset(range(60))] * 60
    plain = replace(OPEN, adapts=True).fit(outputs, split, memory, SINGLE, targets)
    held = replace(OPEN, adapts=True).fit(outputs, replace(split, forbidden=forbidden), doubled, SINGLE, targets)
    leaked = replace(OPEN, adapts=True).fit(outputs, split, doubled, SINGLE, targets)
    assert all(torch.equal(tensor, held.tensors()[name]) for name, tensor in plain.tensors().items())
    assert not torch.equal(plain.network.outer, leaked.network.outer)


@pytest.mark.parametrize("count", [19, 100])
def test_plain_knn_is_kept_where_examples_are_few_or_alike(count):
    """Few examples tell nothing; where all neighbours are as near and of one label, there is nothing to tell by."""
    targets = torch.arange(count) % 2
    outputs = Outputs(torch.full((count, CLASSES), 0.25).log(), torch.ones(count, 4))
    memory = Memory(torch.zeros(30, dtype=torch.long), torch.ones(30, 4))
    fitted = AdaptiveKnnFusion().fit(outputs, Split(examples(count)), memory, SINGLE, targets)
    plain = KnnFusion().fit(outputs, Split(examples(count)), memory, SINGLE, targets)
    assert (fitted.adapts, fitted.tensors()) == (False, {})
    assert (fitted.k, fitted.temperature, fitted.weight) == (plain.k, plain.temperature, plain.weight)
    answers = (one.combine(outputs, Split(examples(count)), memory, SINGLE) for one in (fitted, plain))
    assert torch.equal(*answers)


def test_examples_of_one_group_or_one_text_are_learned_from_or_asked_together():
    asked = [
        Example(str(n), text, group=group)
        for n, (text, group) in enumerate(
            [("a", ""), ("b", "g"), ("A ", ""), ("c", "g"), ("d", ""), ("e", ""), ("f", "")]
        )
    ]
    lesson = Lesson(*[torch.zeros(0)] * 3, SINGLE, torch.zeros(0), asked, Decisions([1, 2, 1, 1, 0, 1, 1]))
    assert lesson.folds() == [0, 1, 1, 0, 1, 3, 4]


def test_before_it_is_fitted_the_model_answers_alone():
    outputs = model_outputs(SINGLE, 3)
    for fusion in (AdaptiveKnnFusion(), replace(OPEN, adapts=True)):
        assert fusion.combine(outputs, Split(examples(3)), None, SINGLE) is outputs.log_probs
        assert fusion.shown(outputs, Split(examples(3)), None) == [[], [], []]


def test_settings_and_what_is_learned_survive_saving():
    fusion = replace(OPEN, adapts=True, network=some_network(18))
    settings = json.loads(json.dumps(fusion.to_dict()))
    again = AdaptiveKnnFusion.from_dict(settings).with_tensors(fusion.tensors())
    assert again == fusion
    numbers = torch.randn(5, 18, dtype=torch.float64)
    assert torch.equal(again.network.share(numbers), fusion.network.share(numbers))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden": 0}, "fusion.hidden is 0; the network needs one hidden unit at least."),
        ({"network": "x"}, "fusion.network is what is learned, and no option. Leave it out."),
        ({"weight": 2.0}, "fusion.weight is 2.0; λ lies in [0, 1]."),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ConfigError) as caught:
        AdaptiveKnnFusion(**options)
    assert str(caught.value) == message


def test_a_network_keeps_the_promises_of_a_fusion():
    found = check_fusion(AdaptiveKnnFusion(k=3, adapts=True), TINY_BACKBONES["bert"], "lora")
    assert "what is fitted on validation survives saving bit for bit" in found.checked


def test_neighbours_tokens_count_by_what_is_known_while_a_text_is_written():
    """Each row has a λ of its own, of the distances and the numbers of different tokens."""
    tokens = [[5, 1], [6, 0], [5, 0]]
    memory = Memory(torch.tensor(tokens), torch.eye(3), Decisions([2, 1]))
    fusion = AdaptiveKnnFusion(k=2, temperature=0.5, weight=0.0, adapts=True, network=some_network(4))
    mixed = fusion.next_token(memory)
    assert isinstance(mixed, NeighbourTokens)
    mixed.states = torch.tensor([[1.0, 0.2, 0.1], [0.1, 0.1, 0.9]])
    logits = torch.randn(2, 8)
    found = mixed(torch.tensor([[1], [1]]), logits)
    for row, state in enumerate(mixed.states):
        cosines = (state / state.norm()).tolist()
        nearest = sorted(range(3), key=lambda place, cosines=cosines: -cosines[place])[:2]
        pairs = [(place, cosines[place]) for place in nearest]
        share = loop_share(fusion.network, loop_evidence(pairs, [token for token, _ in tokens], 2))
        for token in range(8):
            vote = sum(
                part for part, place in zip(loop_shares(pairs, 0.5), nearest, strict=True) if tokens[place][0] == token
            )
            expected = share * vote + (1 - share) * float(logits[row].softmax(-1)[token])
            assert math.exp(found[row, token]) == pytest.approx(expected, abs=1e-6)


def test_mixing_by_rows_equals_mixing_by_one_weight():
    own, votes = model_outputs(SINGLE, 3).log_probs, model_outputs(SINGLE, 3, seed=1).log_probs
    votes[1], votes[2, 0] = math.nan, -math.inf
    weights = torch.tensor([0.2, 0.5, 0.9])
    mixed = mix(own, votes, weights)
    for row, weight in enumerate(weights.tolist()):
        assert torch.allclose(mixed[row], mix(own, votes, weight)[row], atol=1e-6)
