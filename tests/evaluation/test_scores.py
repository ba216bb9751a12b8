import warnings

import numpy as np
import pytest
from sklearn import metrics

from peft_rag.evaluation.scores import accuracy, calibration_error, macro_f1, matthews_correlation, micro_f1

CASES = {
    "random": lambda draw: (draw.integers(0, 7, 200), draw.integers(0, 7, 200)),
    "mostly right": lambda draw: _mostly_right(draw),
    "classes absent on either side": lambda draw: (draw.integers(0, 4, 60) * 2, draw.integers(1, 6, 60)),
    "constant predictions": lambda draw: (np.full(50, 3), draw.integers(0, 5, 50)),
    "constant references": lambda draw: (draw.integers(0, 5, 50), np.full(50, 2)),
    "both constant and equal": lambda draw: (np.full(9, 1), np.full(9, 1)),
    "both constant and different": lambda draw: (np.full(9, 0), np.full(9, 4)),
    "one example": lambda draw: (np.array([2]), np.array([2])),
    "all wrong": lambda draw: (np.arange(20) % 3, (np.arange(20) + 1) % 3),
}


def _mostly_right(draw):
    actual = draw.integers(0, 5, 300)
    return np.where(draw.random(300) < 0.8, actual, draw.integers(0, 5, 300)), actual


@pytest.mark.parametrize("make", CASES.values(), ids=CASES)
@pytest.mark.parametrize("seed", range(3))
def test_single_label_scores_equal_scikit_learns(make, seed):
    predictions, references = make(np.random.default_rng(seed))
    assert accuracy(predictions, references) == pytest.approx(metrics.accuracy_score(references, predictions))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn warns of classes never predicted, and of one class alone
        assert macro_f1(predictions, references) == pytest.approx(
            metrics.f1_score(references, predictions, average="macro", zero_division=0)
        )
        assert micro_f1(predictions, references) == pytest.approx(
            metrics.f1_score(references, predictions, average="micro", zero_division=0)
        )
        assert matthews_correlation(predictions, references) == pytest.approx(
            metrics.matthews_corrcoef(references, predictions), abs=1e-12
        )


@pytest.mark.parametrize("rate", [0.05, 0.3, 0.9])
def test_multi_label_scores_equal_scikit_learns(rate):
    draw = np.random.default_rng(1)
    references = (draw.random((80, 6)) < rate).astype(np.int64)
    predictions = np.where(draw.random((80, 6)) < 0.7, references, 1 - references)
    predictions[:, 4] = references[:, 4] = 0
    references[3] = predictions[3] = 0
    assert accuracy(predictions, references) == pytest.approx(metrics.accuracy_score(references, predictions))
    assert micro_f1(predictions, references) == pytest.approx(
        metrics.f1_score(references, predictions, average="micro")
    )
    assert macro_f1(predictions, references) == pytest.approx(
        metrics.f1_score(references, predictions, average="macro", zero_division=np.nan)
    )


def test_f1_is_zero_when_there_is_nothing_to_find_and_nothing_found():
    nothing = np.zeros((5, 3), dtype=np.int64)
    assert macro_f1(nothing, nothing) == 0.0
    assert micro_f1(nothing, nothing) == 0.0
    assert accuracy(nothing, nothing) == 1.0


def test_multi_label_accuracy_counts_an_example_only_when_all_its_labels_are_right():
    references = np.array([[1, 0, 1], [0, 0, 0], [1, 1, 1]])
    predictions = np.array([[1, 0, 1], [0, 1, 0], [1, 1, 1]])
    assert accuracy(predictions, references) == pytest.approx(2 / 3)


def loop_calibration_error(confidence, right, bins):
    pairs = list(zip(confidence.ravel().tolist(), right.ravel().tolist(), strict=True))
    error = 0.0
    for number in range(bins):
        low, high = number / bins, (number + 1) / bins
        members = [
            (sure, correct) for sure, correct in pairs if low <= sure < high or (number == bins - 1 and sure >= 1.0)
        ]
        if members:
            trust = sum(sure for sure, _ in members) / len(members)
            share = sum(correct for _, correct in members) / len(members)
            error += len(members) / len(pairs) * abs(share - trust)
    return error


@pytest.mark.parametrize("shape", [(1,), (400,), (60, 5)])
@pytest.mark.parametrize("bins", [1, 10, 15])
def test_calibration_error_equals_a_plain_loop(shape, bins):
    draw = np.random.default_rng(2)
    confidence = draw.random(shape)
    confidence.flat[:2] = [1.0, 0.0][: confidence.size]
    right = (draw.random(shape) < 0.6).astype(float)
    assert calibration_error(confidence, right, bins) == pytest.approx(loop_calibration_error(confidence, right, bins))


def test_calibration_error_knows_perfect_and_worst():
    assert calibration_error(np.full(10, 0.7), np.array([1.0] * 7 + [0.0] * 3)) == pytest.approx(0.0)
    assert calibration_error(np.ones(4), np.zeros(4)) == pytest.approx(1.0)


def test_calibration_error_takes_a_confidence_that_rounding_put_above_one():
    assert calibration_error(np.array([1.0 + 1e-7]), np.ones(1)) == pytest.approx(0.0, abs=1e-6)
