import json
import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from peft_rag.errors import ConfigError, DataError
from peft_rag.evaluation import scores
from peft_rag.records import read_records
from peft_rag.tasks.base import Example
from peft_rag.tasks.text_classification import TextClassification

SINGLE = TextClassification(labels=("a", "b", "c"))
MULTI = TextClassification(labels=("a", "b", "c"), multi_label=True)
BOTH = pytest.mark.parametrize("task", [SINGLE, MULTI], ids=["single-label", "multi-label"])


def logits_and_targets(task, count=7, seed=0):
    draw = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(count, len(task.labels), generator=draw)
    shape = (count, len(task.labels)) if task.multi_label else (count,)
    return logits, torch.randint(0, 2 if task.multi_label else len(task.labels), shape, generator=draw)


def failure(call, *arguments):
    with pytest.raises(DataError) as caught:
        call(*arguments)
    return str(caught.value)


def test_read_takes_text_labels_ids_groups_and_places():
    task = TextClassification(text_field="body", label_field="topic", id_field="key", group_field="page")
    records = read_records(
        [
            {"key": "x", "body": "one", "topic": "p", "page": 7},
            {"body": "two", "topic": 3, "page": None},
            {"key": 5, "body": "three", "topic": True, "page": " q "},
            {"key": None, "body": "four", "topic": "p"},
        ]
    )
    assert task.read(records) == [
        Example("x", "one", ("p",), "the data given row 1", "7"),
        Example("2", "two", ("3",), "the data given row 2", ""),
        Example("5", "three", ("true",), "the data given row 3", "q"),
        Example("4", "four", ("p",), "the data given row 4", ""),
    ]


def test_read_needs_no_labels_for_prediction():
    assert [example.labels for example in SINGLE.read(read_records([{"text": "x"}]), labelled=False)] == [None]


def test_read_names_place_field_and_the_way_out_when_a_field_is_missing():
    records = read_records([{"text": "x", "label": "a"}, {"text": "y", "topic": "b"}])
    assert failure(SINGLE.read, records) == (
        "the data given row 2: field 'label' is missing (found: text, topic). Name the field with --label_field topic."
    )


def test_labels_are_sorted_and_one_a_text_makes_the_task_single_label():
    records = read_records([{"text": "x", "label": label} for label in ["b", "a", ["c"], "b"]])
    learned = TextClassification().with_labels_of(TextClassification().read(records))
    assert (learned.labels, learned.multi_label, learned.main_metric) == (("a", "b", "c"), False, "accuracy")


@pytest.mark.parametrize("label", [["a", "b"], []])
def test_one_text_with_several_labels_or_none_makes_the_task_multi_label(label):
    records = read_records([{"text": "x", "label": label}, {"text": "y", "label": ["b"]}, {"text": "z", "label": "a"}])
    learned = TextClassification().with_labels_of(TextClassification().read(records))
    assert (learned.labels, learned.multi_label, learned.main_metric) == (("a", "b"), True, "micro_f1")


def test_multi_label_can_be_asked_for_where_every_text_has_one():
    examples = [Example("0", "x", ("a",)), Example("1", "y", ("b",))]
    assert TextClassification(multi_label=True).with_labels_of(examples).multi_label


def test_targets_are_indices_for_one_label_and_rows_for_several():
    examples = [Example("0", "x", ("b",)), Example("1", "y", ("a",)), Example("2", "z", ("c",))]
    assert SINGLE.targets(examples).tolist() == [1, 0, 2]
    examples = [Example("0", "x", ("c", "a")), Example("1", "y", ()), Example("2", "z", ("b",))]
    targets = MULTI.targets(examples)
    assert targets.tolist() == [[1, 0, 1], [0, 0, 0], [0, 1, 0]]
    assert targets.dtype == torch.long


@BOTH
def test_targets_name_the_place_and_the_nearest_label_when_one_is_unseen(task):
    task = TextClassification(labels=("apple", "pear"), multi_label=task.multi_label)
    examples = [Example("0", "x", ("pear",), "t.jsonl line 1"), Example("1", "y", ("pare",), "t.jsonl line 4,112")]
    assert failure(task.targets, examples) == (
        "t.jsonl line 4,112: label 'pare' does not occur in the training data (2 labels). Did you mean 'pear'? "
        "Add training examples with it, or correct the record."
    )


@pytest.mark.parametrize("labels", [(), None])
def test_targets_refuse_an_example_without_a_label_only_when_it_needs_one(labels):
    example = Example("0", "x", labels, "t.jsonl line 9")
    assert failure(SINGLE.targets, [example]) == (
        "t.jsonl line 9: has no label. Add one in field 'label', or leave it out."
    )
    assert MULTI.targets([example]).tolist() == [[0, 0, 0]]


def test_targets_refuse_several_labels_where_the_model_knows_one_and_drop_none():
    assert failure(SINGLE.targets, [Example("0", "x", ("a", "b"), "t.jsonl line 9")]) == (
        "t.jsonl line 9: has 2 labels (a, b), but this model was trained on one label a text. "
        "Give one label, or train on data with several."
    )


@BOTH
def test_log_probs_sum_to_one_over_the_last_dimension_even_for_extreme_logits(task):
    logits = torch.tensor([[100.0, -100.0, 0.0], [0.0, 0.0, 0.0], [1e4, 1e4, -1e4]])
    log_probs = task.log_probs(logits)
    assert log_probs.shape == ((3, 3, 2) if task.multi_label else (3, 3))
    assert torch.allclose(log_probs.exp().sum(-1), torch.ones(log_probs.shape[:-1]))
    assert log_probs.isfinite().all()


def test_log_probs_of_half_precision_are_single_precision():
    assert SINGLE.log_probs(torch.zeros(1, 3, dtype=torch.bfloat16)).dtype == torch.float32


def test_loss_is_torchs_cross_entropy_for_one_label():
    logits, targets = logits_and_targets(SINGLE)
    expected = torch.nn.functional.cross_entropy(logits, targets)
    assert SINGLE.loss(SINGLE.log_probs(logits), targets) == pytest.approx(expected.item(), rel=1e-6)


def test_loss_is_torchs_mean_binary_cross_entropy_for_several():
    logits, targets = logits_and_targets(MULTI)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logits, targets.float())
    assert MULTI.loss(MULTI.log_probs(logits), targets) == pytest.approx(expected.item(), rel=1e-6)


@BOTH
def test_gradient_of_the_loss_equals_finite_differences(task):
    logits, targets = logits_and_targets(task, count=3)
    logits.requires_grad_()
    task.loss(task.log_probs(logits), targets).backward()
    step = 1e-2
    for row in range(3):
        for column in range(3):
            nudge = torch.zeros_like(logits)
            nudge[row, column] = step
            with torch.no_grad():
                above = task.loss(task.log_probs(logits + nudge), targets).item()
                below = task.loss(task.log_probs(logits - nudge), targets).item()
            assert logits.grad[row, column].item() == pytest.approx((above - below) / (2 * step), abs=2e-4)


def pooled_in_a_loop(hidden, mask, pooling):
    rows = []
    for states, seen in zip(hidden.tolist(), mask.tolist(), strict=True):
        tokens = [state for state, one in zip(states, seen, strict=True) if one]
        if pooling == "mean":
            row = [sum(column) / len(tokens) for column in zip(*tokens, strict=True)]
        else:
            row = tokens[0 if pooling == "cls" else -1]
        length = math.sqrt(sum(value * value for value in row))
        rows.append([value / length for value in row])
    return torch.tensor(rows, dtype=hidden.dtype)


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_features_equal_a_plain_loop_with_padding_on_either_side(pooling):
    hidden = torch.randn(5, 6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mask = torch.tensor(
        [[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0], [0, 0, 1, 1, 1, 1], [0, 0, 0, 1, 1, 0], [0, 0, 0, 0, 0, 1]]
    )
    features = TextClassification(pooling=pooling).features(hidden, mask)
    assert torch.allclose(features, pooled_in_a_loop(hidden, mask, pooling))


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_features_do_not_see_what_lies_under_padding(pooling):
    task = TextClassification(pooling=pooling)
    hidden, mask = torch.randn(2, 4, 3), torch.tensor([[1, 1, 0, 0], [0, 0, 1, 1]])
    other = torch.where(mask.bool().unsqueeze(-1), hidden, torch.full_like(hidden, 1e3))
    assert torch.equal(task.features(hidden, mask), task.features(other, mask))


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_gradient_of_the_features_equals_finite_differences(pooling):
    hidden = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[1, 1, 1, 0], [0, 1, 1, 1]])
    task = TextClassification(pooling=pooling)
    assert torch.autograd.gradcheck(lambda states: task.features(states, mask), hidden)


def test_mean_of_no_token_at_all_is_zero_and_no_nan():
    assert SINGLE.features(torch.randn(1, 3, 4), torch.zeros(1, 3, dtype=torch.long)).tolist() == [[0.0] * 4]


def test_unknown_pooling_is_refused():
    with pytest.raises(ConfigError) as caught:
        TextClassification(pooling="max")
    assert str(caught.value) == "task.pooling is 'max'. Choose mean, cls or last."


def probe_data(classes, seed=0):
    draw = np.random.default_rng(seed)
    centres = draw.normal(size=(classes, 6))
    wanted = np.arange(40 * classes) % classes
    return torch.tensor(centres[wanted] + draw.normal(size=(len(wanted), 6)), dtype=torch.float32), wanted


def fitted(task, features, targets, **options):
    head = task.make_head(features.shape[1])
    task.fit_head(head, features, torch.as_tensor(targets), **options)
    with torch.no_grad():
        return task.log_probs(head(features))


def reference_probabilities(features, wanted, strength=1.0):
    """Scikit-learn's, on features moved and scaled in plain loops to mean 0 and mean squared length 1."""
    rows = features.double().tolist()
    means = [sum(column) / len(rows) for column in zip(*rows, strict=True)]
    moved = [[value - mean for value, mean in zip(row, means, strict=True)] for row in rows]
    spread = math.sqrt(sum(value * value for row in moved for value in row) / len(rows))
    scaled = np.array(moved) / spread
    return LogisticRegression(C=strength, max_iter=1000).fit(scaled, wanted).predict_proba(scaled)


@pytest.mark.parametrize("classes", [2, 3, 5])
@pytest.mark.parametrize("strength", [1.0, 30.0])
def test_fitted_head_gives_scikit_learns_probabilities_for_one_label(classes, strength):
    features, wanted = probe_data(classes)
    task = TextClassification(labels=tuple(map(str, range(classes))))
    reference = reference_probabilities(features, wanted, strength)
    ours = fitted(task, features, wanted, strength=strength)
    assert np.allclose(ours.exp().numpy(), reference, atol=1e-5)
    assert ours.argmax(-1).tolist() == reference.argmax(-1).tolist()


def test_fitted_head_gives_scikit_learns_probabilities_for_each_label_and_knows_a_constant_one():
    features, wanted = probe_data(3)
    rows = np.stack([wanted == 0, wanted != 1, np.zeros(len(wanted)), np.ones(len(wanted))], axis=1).astype(np.int64)
    task = TextClassification(labels=("a", "b", "never", "always"), multi_label=True)
    present = fitted(task, features, rows).exp()[..., 1].numpy()
    for column in (0, 1):
        assert np.allclose(present[:, column], reference_probabilities(features, rows[:, column])[:, 1], atol=1e-5)
    assert present[:, 2].max() < 0.01
    assert present[:, 3].min() > 0.99


def test_fitted_head_of_a_single_multi_label_label():
    features, wanted = probe_data(2)
    ours = fitted(TextClassification(labels=("a",), multi_label=True), features, wanted[:, None]).exp()[:, 0, 1]
    assert np.allclose(ours.numpy(), reference_probabilities(features, wanted)[:, 1], atol=1e-5)


def test_fitted_head_predicts_the_same_however_crowded_and_far_away_the_features_are():
    features, wanted = probe_data(3)
    crowded = 0.01 * features + torch.arange(6.0)
    assert torch.allclose(fitted(SINGLE, crowded, wanted), fitted(SINGLE, features, wanted), atol=1e-2)


def test_fitted_head_predicts_how_often_a_label_occurs_when_all_features_are_equal():
    features = torch.nn.functional.normalize(torch.tensor([[0.3, -0.7, 0.1, 0.9]]), dim=-1).expand(10, 4)
    wanted = np.array([0] * 7 + [1] * 2 + [2])
    assert torch.allclose(fitted(SINGLE, features, wanted).exp()[0], torch.tensor([0.7, 0.2, 0.1]), atol=1e-3)


@pytest.mark.parametrize("present", [[0, 3], [1, 2, 3], [2]])
def test_fitted_head_never_predicts_a_class_without_examples(present):
    features, wanted = probe_data(4)
    chosen = np.isin(wanted, present)
    task = TextClassification(labels=("a", "b", "c", "d"))
    predictions = fitted(task, features[chosen], wanted[chosen]).argmax(-1).numpy()
    assert set(predictions) <= set(present)
    assert (predictions == wanted[chosen]).mean() > 0.7


def test_vote_is_one_hot_in_the_shape_of_the_log_probabilities():
    assert SINGLE.vote(torch.tensor([[2, 0]])).tolist() == [[[0, 0, 1], [1, 0, 0]]]
    assert MULTI.vote(torch.tensor([[1, 0, 1]])).tolist() == [[[0, 1], [1, 0], [0, 1]]]


def test_decode_gives_the_likeliest_label_and_its_probability():
    log_probs = torch.tensor([[0.2, 0.7, 0.1], [0.5, 0.2, 0.3]]).log()
    (first, second) = SINGLE.decode(log_probs, [])
    assert (first[0], second[0]) == (("b",), ("a",))
    assert (first[1], second[1]) == pytest.approx((0.7, 0.5))


def test_decode_gives_every_label_above_one_half_and_the_probability_of_that_set():
    present = torch.tensor([[0.9, 0.2, 0.6], [0.1, 0.4, 0.3]])
    first, second = MULTI.decode(torch.stack([1 - present, present], -1).log(), [])
    assert (first[0], second[0]) == (("a", "c"), ())
    assert first[1] == pytest.approx(0.9 * 0.8 * 0.6)
    assert second[1] == pytest.approx(0.9 * 0.6 * 0.7)


def test_evaluate_scores_one_label_by_accuracy_f1_correlation_and_calibration():
    logits, targets = logits_and_targets(SINGLE, count=60)
    log_probs = SINGLE.log_probs(logits)
    given = SINGLE.evaluate(log_probs, targets, resamples=30)
    predictions, references = log_probs.argmax(-1).numpy(), targets.numpy()
    confidence = log_probs.exp().amax(-1).double().numpy()
    assert {name: score.value for name, score in given.items()} == pytest.approx(
        {
            "accuracy": scores.accuracy(predictions, references),
            "macro_f1": scores.macro_f1(predictions, references),
            "mcc": scores.matthews_correlation(predictions, references),
            "ece": scores.calibration_error(confidence, (predictions == references).astype(float)),
        }
    )
    assert all(score.low <= score.value <= score.high for name, score in given.items() if name != "ece")
    assert SINGLE.main_metric in given


def test_evaluate_scores_several_labels_by_their_decisions():
    logits, targets = logits_and_targets(MULTI, count=60)
    given = MULTI.evaluate(MULTI.log_probs(logits), targets, resamples=30)
    decisions = (logits > 0).long().numpy()
    assert set(given) == {"accuracy", "macro_f1", "micro_f1", "ece"}
    assert given["micro_f1"].value == pytest.approx(scores.micro_f1(decisions, targets.numpy()))
    assert given["accuracy"].value == pytest.approx((decisions == targets.numpy()).all(axis=1).mean())
    assert MULTI.main_metric in given


@BOTH
def test_task_survives_json(task):
    settings = json.loads(json.dumps(task.to_dict()))
    assert TextClassification.from_dict(settings) == task
    assert hash(TextClassification.from_dict(settings)) == hash(task)
