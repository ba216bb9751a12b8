import numpy as np
import pytest
from scipy.stats import binom, t

from peft_rag.evaluation.statistics import MEAN
from peft_rag.evaluation.tallies import Tallies
from peft_rag.evaluation.two_level import bootstrap_rows, interval, p_value, seed_variance


def bootstrap_means(tables, **options):
    return bootstrap_rows([Tallies(table[..., None], MEAN) for table in tables], **options)


def simulated(generator, *, seeds, examples, seed_effect, own_examples=0.3, advantage=0.0):
    """Scores 0/1 of one model: difficulty shared by all models is the caller's, the rest is its own."""
    latent = 0.8 + advantage + generator["difficulty"] + own_examples * generator["draw"].normal(size=examples)
    latent = latent + seed_effect * generator["draw"].normal(size=(seeds, 1))
    return (latent + 0.5 * generator["draw"].normal(size=(seeds, examples)) > 0).astype(float)


def difference(trial, *, seeds, examples, seed_effect, advantage=0.0):
    draw = np.random.default_rng(trial)
    generator = {"draw": draw, "difficulty": draw.normal(size=examples)}
    about = {"seeds": seeds, "examples": examples, "seed_effect": seed_effect}
    return simulated(generator, **about, advantage=advantage) - simulated(generator, **about)


def rejections(trials, **about):
    count = 0
    for trial in range(trials):
        table = difference(trial, **about)
        count += p_value(bootstrap_means([table], resamples=400, seed=trial)[0]) < 0.05
    return count


@pytest.mark.parametrize(
    ("seeds", "seed_effect"), [(1, 0.0), (3, 0.0), (3, 0.1), (3, 0.4), (5, 0.2)], ids=lambda value: str(value)
)
def test_equal_models_are_told_apart_in_about_5_of_100_comparisons(seeds, seed_effect):
    trials = 400
    found = rejections(trials, seeds=seeds, examples=200, seed_effect=seed_effect)
    fewest, most = binom.interval(0.998, trials, 0.05)
    assert found <= most
    assert found >= fewest / 2  # where the variance of seeds is nearly nothing, the test is a little careful


def test_a_known_difference_is_found():
    assert rejections(60, seeds=3, examples=400, seed_effect=0.02, advantage=0.5) >= 57


def test_interval_of_a_mean_covers_it_in_about_95_of_100_samples():
    covered, trials = 0, 400
    for trial in range(trials):
        draw = np.random.default_rng(trial)
        table = draw.normal(size=150) + 0.2 * draw.normal(size=(3, 1)) + draw.normal(size=(3, 150))
        score = interval(float(table.mean()), bootstrap_means([table], resamples=400, seed=trial)[0], table.shape[1])
        covered += score.low <= 0 <= score.high
    assert binom.ppf(0.001, trials, 0.95) <= covered <= binom.ppf(0.999, trials, 0.965)


def test_seed_variance_equals_a_plain_loop():
    table = np.random.default_rng(0).random((4, 7)) + 3 * np.arange(4)[:, None]
    seeds, examples = table.shape
    whole = sum(table[s][i] for s in range(seeds) for i in range(examples)) / (seeds * examples)
    by_seed = [sum(table[s]) / examples for s in range(seeds)]
    by_example = [sum(table[s][i] for s in range(seeds)) / seeds for i in range(examples)]
    between = sum(examples * (one - whole) ** 2 for one in by_seed) / (seeds - 1)
    rest = 0.0
    for s in range(seeds):
        for i in range(examples):
            rest += (table[s][i] - by_seed[s] - by_example[i] + whole) ** 2
    rest /= (seeds - 1) * (examples - 1)
    assert seed_variance(table) == pytest.approx((between - rest) / examples)


def test_seed_variance_is_right_on_average_and_never_negative():
    found = []
    for trial in range(400):
        draw = np.random.default_rng(trial)
        found.append(seed_variance(draw.normal(size=50) + 0.7 * draw.normal(size=(4, 1)) + draw.normal(size=(4, 50))))
    assert np.mean(found) == pytest.approx(0.49, abs=0.06)
    assert min(found) >= 0


@pytest.mark.parametrize("shape", [(1, 9), (3, 1)])
def test_one_seed_or_one_example_says_nothing_of_the_variance_of_seeds(shape):
    assert seed_variance(np.random.default_rng(0).random(shape)) == 0.0


def test_draws_of_one_seed_equal_a_plain_loop_over_the_same_examples():
    table = np.random.default_rng(1).random((1, 13))
    draws = bootstrap_means([table], resamples=20, seed=4)
    chosen = np.random.default_rng(4).integers(0, 13, (20, 13))
    expected = [sum(table[0][place] for place in row) / 13 for row in chosen.tolist()]
    assert draws[0] == pytest.approx(expected)


def test_no_interval_leaves_what_the_value_can_be():
    table = np.stack([np.repeat([1.0, 0.0], [hits, 500 - hits]) for hits in (250, 475)])
    draws = bootstrap_means([table])[0]
    assert draws.min() < 0 < 1 < draws.max()
    score = interval(float(table.mean()), draws, 500)
    assert (score.low, score.high) == (0.0, 1.0)
    assert interval(0.9, 40 * (draws - 0.9), 500, least=-1.0).low == -1.0


def test_where_seeds_decide_the_interval_is_students():
    table = np.array([0.45, 0.5, 0.53])[:, None] + np.zeros((3, 500))
    score = interval(float(table.mean()), bootstrap_means([table], resamples=200_000)[0], table.shape[1])
    half = t.ppf(0.975, 2) * table[:, 0].std(ddof=1) / np.sqrt(3)
    assert score.high - score.value == pytest.approx(half, rel=0.03)
    assert score.value - score.low == pytest.approx(half, rel=0.03)


def test_all_tables_are_drawn_over_the_same_examples():
    table = np.random.default_rng(0).random((1, 40))
    first, second, gap = bootstrap_means([table, table - 0.25, 0 * table], resamples=600)
    assert first - second == pytest.approx(np.full(600, 0.25))
    assert (gap == 0).all()


def test_draws_are_decided_by_the_seed_and_as_many_as_asked_for():
    table = np.random.default_rng(0).random((3, 40))
    assert bootstrap_means([table], resamples=333).shape == (1, 333)
    assert (bootstrap_means([table], resamples=50) == bootstrap_means([table], resamples=50)).all()
    assert (bootstrap_means([table], resamples=50) != bootstrap_means([table], resamples=50, seed=1)).any()


@pytest.mark.parametrize("tables", [[], [np.ones((2, 3)), np.ones((2, 4))]])
def test_bootstrap_refuses_no_rows_and_different_examples(tables):
    with pytest.raises(ValueError, match="rows over the same examples"):
        bootstrap_means(tables)


def test_p_counts_the_draws_on_the_far_side():
    assert p_value(np.array([-1.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0])) == pytest.approx(2 * (1 + 1) / 10)
    assert p_value(np.full(99, 0.5)) == pytest.approx(0.02)
    assert p_value(np.zeros(99)) == 1.0


@pytest.mark.parametrize(
    ("value", "least", "low", "high"), [(1.0, 0.0, 0.884, 1.0), (0.0, 0.0, 0.0, 0.116), (0.0, -1.0, -0.116, 0.116)]
)
def test_interval_of_examples_that_are_all_alike_has_room_for_what_they_did_not_show(value, least, low, high):
    """Clopper and Pearson's for 30 of 30."""
    score = interval(value, np.full(1000, value), 30, least=least)
    assert (score.low, score.high) == pytest.approx((low, high), abs=5e-4)
    varied = interval(0.5, np.random.default_rng(0).normal(0.5, 0.1, 1000), 30)
    assert 0.2 < varied.low < varied.high < 0.8
