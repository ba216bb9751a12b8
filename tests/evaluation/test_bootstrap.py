import numpy as np
import pytest

from peft_rag.evaluation.bootstrap import Score, bootstrap, unseen
from peft_rag.evaluation.scores import calibration_error


def mean_difference(left, right):
    return float(left.mean() - right.mean())


def plain_quantile(values, share):
    """Linear interpolation between order statistics."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def test_bootstrap_equals_a_plain_loop_over_the_same_draws():
    draw = np.random.default_rng(0)
    left, right = draw.normal(size=37), draw.normal(size=37)
    score = bootstrap(mean_difference, left, right, resamples=101, level=0.9, seed=5)

    generator, values = np.random.default_rng(5), []
    for _ in range(101):
        total_left = total_right = 0.0
        for place in generator.integers(0, 37, 37).tolist():
            total_left += left[place]
            total_right += right[place]
        values.append((total_left - total_right) / 37)
    assert score.value == pytest.approx(mean_difference(left, right))
    assert score.low == pytest.approx(plain_quantile(values, 0.05))
    assert score.high == pytest.approx(plain_quantile(values, 0.95))


def test_interval_covers_the_truth_in_about_95_of_100_samples():
    truth, covered, trials = 0.3, 0, 200
    for trial in range(trials):
        sample = (np.random.default_rng(1000 + trial).random(120) < truth).astype(float)
        score = bootstrap(np.mean, sample, resamples=250, seed=trial)
        covered += score.low <= truth <= score.high
    assert 0.90 <= covered / trials <= 0.985


def test_interval_narrows_with_the_root_of_the_number_of_examples():
    def width(count):
        score = bootstrap(np.mean, np.arange(count) % 2, resamples=400)
        return score.high - score.low

    assert width(100) / width(1600) == pytest.approx(4.0, rel=0.2)


def test_rows_of_all_arrays_are_drawn_together():
    values = np.arange(50)
    score = bootstrap(lambda left, right: float((left == right).mean()), values, values, resamples=20)
    assert score == Score(1.0, 1.0 - unseen(50), 1.0)


def test_bootstrap_draws_rows_of_a_matrix():
    matrix = np.array([[0, 1], [2, 3], [4, 5]])
    bootstrap(lambda rows: float(np.isin(rows[:, 0] + 1, rows[:, 1]).all() or 1 / 0), matrix, resamples=20)


def test_bootstrap_is_decided_by_its_seed():
    sample = np.random.default_rng(0).random(40)
    assert bootstrap(np.mean, sample, resamples=50, seed=1) == bootstrap(np.mean, sample, resamples=50, seed=1)
    assert bootstrap(np.mean, sample, resamples=50, seed=1) != bootstrap(np.mean, sample, resamples=50, seed=2)


def test_interval_is_the_score_itself_without_resamples():
    assert bootstrap(np.mean, np.array([0.0, 1.0]), resamples=0) == Score(0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    ("arrays", "lengths"), [([np.ones(0)], "[0]"), ([np.ones(3), np.ones(4)], "[3, 4]"), ([], "[]")]
)
def test_bootstrap_refuses_no_examples_and_different_lengths(arrays, lengths):
    with pytest.raises(ValueError, match="bootstrap needs arrays") as caught:
        bootstrap(lambda *given: 0.0, *arrays)
    assert str(caught.value) == (
        f"bootstrap needs arrays of one length over at least one example, got lengths {lengths}"
    )


def test_score_is_written_in_percent_with_its_interval():
    score = Score(0.92449, 0.9, 1.0)
    assert str(score) == "92.4 [90.0, 100.0]"
    assert score.to_dict() == {"value": 0.92449, "low": 0.9, "high": 1.0}


@pytest.mark.parametrize("off", [0.02, 0.05])
def test_interval_of_what_few_examples_make_too_large_holds_the_truth(off):
    """Confidences that are too high by as much: the calibration error of ever more decisions is that."""
    draw, held, above = np.random.default_rng(0), 0, 0
    for seed in range(60):
        sure = draw.uniform(0.5, 0.9, 200)
        right = (draw.random(200) < sure - off).astype(float)
        score = bootstrap(calibration_error, sure, right, resamples=200, seed=seed, biased=True)
        assert 0 <= score.low <= score.value <= score.high
        held += score.low <= off <= score.high
        above += bootstrap(calibration_error, sure, right, resamples=200, seed=seed).low > off
    assert held >= 47
    assert above > 12 or off == 0.05


@pytest.mark.parametrize("right", [0.0, 1.0])
def test_interval_of_examples_that_are_all_right_or_all_wrong_is_clopper_and_pearsons(right):
    from scipy.stats import binomtest

    exact = binomtest(int(30 * right), 30).proportion_ci(method="exact")
    score = bootstrap(np.mean, np.full(30, right), resamples=50)
    assert (score.low, score.high) == pytest.approx((exact.low, exact.high))
