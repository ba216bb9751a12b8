import math

import numpy as np
import pytest
from scipy.stats import binom
from sklearn.metrics import f1_score

from peft_rag.evaluation.entities import entity_f1
from peft_rag.evaluation.statistics import EXP_MEAN, F1, MEAN, STATISTICS
from peft_rag.evaluation.tallies import Tallies, difference
from peft_rag.evaluation.two_level import bootstrap_rows, interval, p_value, seed_variance


def f1_tallies(draw, seeds, examples, skill=0.6):
    """Entities of sentences, and what models of some skill find of them: right, predicted, actual."""
    actual = np.broadcast_to(draw.integers(0, 4, examples), (seeds, examples))
    right = draw.binomial(actual, skill)
    return np.stack([right, right + draw.binomial(2, 0.2, (seeds, examples)), actual], axis=-1).astype(float)


def likelihood_tallies(draw, seeds, examples):
    tokens = np.broadcast_to(draw.integers(1, 20, examples), (seeds, examples))
    return np.stack([-tokens * draw.gamma(2.0, 0.5, (seeds, examples)), tokens], axis=-1).astype(float)


MAKE = {
    "mean": lambda draw, seeds, examples: draw.random((seeds, examples, 1)),
    "f1": f1_tallies,
    "exp_mean": likelihood_tallies,
}


def loop(statistic, rows):
    """The metric of rows of tallies, written out."""
    sums = [sum(row[column] for row in rows) for column in range(len(rows[0]))]
    if statistic == "mean":
        return sums[0] / len(rows)
    if statistic == "f1":
        return 2 * sums[0] / (sums[1] + sums[2]) if sums[1] + sums[2] else 0.0
    return math.exp(sums[0] / sums[1])


def test_f1_of_labels_is_scikit_learns_and_of_entities_the_scorers_own():
    draw = np.random.default_rng(0)
    guess, truth = (draw.random((50, 6)) < 0.3).astype(int), (draw.random((50, 6)) < 0.4).astype(int)
    tallies = np.stack([(guess * truth).sum(1), guess.sum(1), truth.sum(1)], axis=-1).astype(float)
    assert F1.of(tallies.mean(0)) == pytest.approx(f1_score(truth, guess, average="micro"))
    assert F1.of(tallies.mean(0)) == pytest.approx(entity_f1(tallies.astype(int)))
    assert F1.of(np.zeros(3)) == 0
    assert F1.slopes(np.zeros(3)).tolist() == [0, 0, 0]


@pytest.mark.parametrize("name", STATISTICS)
def test_slopes_are_finite_differences(name):
    statistic = STATISTICS[name]
    means = MAKE[name](np.random.default_rng(1), 1, 30)[0].mean(axis=0)
    for column in range(len(means)):
        step = np.zeros(len(means))
        step[column] = 1e-6
        slope = (statistic.of(means + step) - statistic.of(means - step)) / 2e-6
        assert statistic.slopes(means)[column] == pytest.approx(float(slope), rel=1e-5)


@pytest.mark.parametrize("name", STATISTICS)
def test_scores_of_examples_average_to_the_metric_of_each_seed(name):
    values = MAKE[name](np.random.default_rng(2), 3, 40)
    scores = Tallies(values, STATISTICS[name]).scores
    for seed in range(3):
        assert scores[seed].mean() == pytest.approx(loop(name, values[seed].tolist()))


@pytest.mark.parametrize("name", STATISTICS)
def test_draws_equal_a_plain_loop_over_resampled_examples(name):
    values = MAKE[name](np.random.default_rng(3), 1, 13)
    other = MAKE[name](np.random.default_rng(4), 1, 13)
    one, two = (Tallies(table, STATISTICS[name]) for table in (values, other))
    draws = bootstrap_rows([one, difference(one, two)], resamples=20, seed=4)
    for draw, row in enumerate(np.random.default_rng(4).integers(0, 13, (20, 13)).tolist()):
        first, second = (loop(name, [table[0].tolist()[place] for place in row]) for table in (values, other))
        assert draws[:, draw] == pytest.approx([first, first - second])


def test_draws_of_several_seeds_are_the_loops_mean_plus_the_seeds_part():
    values = likelihood_tallies(np.random.default_rng(5), 3, 11) * [1.0, 1.0]
    values[1, :, 0] *= 3  # one seed is far off, so that the seeds' part is there
    row = Tallies(values, EXP_MEAN)
    draws = bootstrap_rows([row], resamples=6, seed=7)[0]
    generator = np.random.default_rng(7)
    chosen = generator.integers(0, 11, (6, 11)).tolist()
    plain = [np.mean([loop("exp_mean", [seed.tolist()[place] for place in one]) for seed in values]) for one in chosen]
    tails = np.sqrt(seed_variance(row.scores) / 3) * generator.standard_t(2, 6)
    assert seed_variance(row.scores) > 0
    assert draws == pytest.approx(np.array(plain) + tails)


def test_interval_of_f1_covers_it_in_about_95_of_100_samples():
    truth = F1.of(f1_tallies(np.random.default_rng(0), 1, 400_000)[0].mean(axis=0))
    covered, trials = 0, 300
    for trial in range(trials):
        row = Tallies(f1_tallies(np.random.default_rng(trial + 1), 1, 150), F1)
        score = interval(
            float(row.scores.mean()), bootstrap_rows([row], resamples=400, seed=trial)[0], row.scores.shape[1]
        )
        covered += score.low <= truth <= score.high
    assert binom.ppf(0.001, trials, 0.95) <= covered <= binom.ppf(0.999, trials, 0.97)


def test_equal_taggers_are_told_apart_in_about_5_of_100_comparisons_and_a_better_one_is_found():
    trials, level, power = 300, 0, 0
    for trial in range(trials):
        draw = np.random.default_rng(trial)
        actual = draw.integers(0, 4, 200)

        def tagger(skill, draw=draw, actual=actual):
            right = draw.binomial(np.broadcast_to(actual, (3, 200)), skill)
            predicted = right + draw.binomial(2, 0.2, (3, 200))
            return Tallies(np.stack([right, predicted, np.broadcast_to(actual, (3, 200))], -1).astype(float), F1)

        first, second, better = tagger(0.6), tagger(0.6), tagger(0.85)
        same, more = bootstrap_rows([difference(first, second), difference(better, first)], resamples=300, seed=trial)
        level += p_value(same) < 0.05
        power += p_value(more) < 0.05
    fewest, most = binom.interval(0.998, trials, 0.05)
    assert fewest / 2 <= level <= most
    assert power > 0.9 * trials


def test_rows_of_other_metrics_seeds_or_columns_are_refused():
    with pytest.raises(ValueError, match="the same seeds, examples and metric"):
        difference(Tallies(np.ones((1, 4, 2)), EXP_MEAN), Tallies(np.ones((1, 4, 3)), F1))
    for shape in ((0, 3, 1), (2, 0, 1), (2, 3, 2), (3,)):
        with pytest.raises(ValueError, match="'mean' needs tallies of seeds × examples × 1"):
            Tallies(np.ones(shape), MEAN)
