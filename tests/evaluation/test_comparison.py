import math

import numpy as np
import pytest
from scipy.stats import binomtest

from peft_rag.evaluation.bootstrap import Score
from peft_rag.evaluation.comparison import Comparison, as_family, compare
from peft_rag.evaluation.holm import holm
from peft_rag.evaluation.mcnemar import mcnemar
from peft_rag.evaluation.ranks import placings, ranks
from peft_rag.evaluation.spread import Spread, spread
from peft_rag.evaluation.statistics import MEAN
from peft_rag.evaluation.tallies import Tallies, difference
from peft_rag.evaluation.two_level import bootstrap_rows


def row(table):
    return Tallies(table[..., None], MEAN)


def answers(both, only_first, only_second, neither):
    first = [True] * (both + only_first) + [False] * (only_second + neither)
    second = [True] * both + [False] * only_first + [True] * only_second + [False] * neither
    return np.array(first, dtype=bool), np.array(second, dtype=bool)


@pytest.mark.parametrize(("b", "c"), [(0, 0), (1, 0), (3, 3), (2, 9), (40, 22), (0, 15)])
def test_mcnemar_equals_scipys_binomial_test_and_a_plain_sum(b, c):
    found = mcnemar(*answers(5, b, c, 4))
    assert (found.only_first, found.only_second) == (b, c)
    assert found.exact == pytest.approx(binomtest(b, b + c).pvalue if b + c else 1.0)
    chance = [math.comb(b + c, k) / 2 ** (b + c) for k in range(min(b, c) + 1)]
    assert found.mid_p == pytest.approx(min(1.0, 2 * sum(chance) - chance[-1]))


def test_mcnemar_refuses_different_examples():
    with pytest.raises(ValueError, match=r"the same examples twice, got shapes \(2,\) and \(3,\)"):
        mcnemar(np.ones(2, dtype=bool), np.ones(3, dtype=bool))


def test_holm_equals_stepping_down_by_hand():
    values = np.random.default_rng(3).random(9) ** 4
    ordered = sorted(values)
    for level in (0.001, 0.01, 0.05, 0.2, 0.6):
        rejected = set()
        for step, p in enumerate(ordered):
            if p > level / (len(values) - step):
                break
            rejected.add(p)
        assert {p for p, q in zip(values, holm(values), strict=True) if q <= level} == rejected


def test_holm_keeps_one_value_and_none():
    assert holm([0.03]) == [0.03]
    assert holm([]) == []
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def test_holm_errs_in_a_family_of_true_hypotheses_in_at_most_5_of_100_families():
    draw = np.random.default_rng(0)
    wrong = sum(min(holm(draw.random(12))) < 0.05 for _ in range(1000))
    assert 25 <= wrong <= 75


def test_spread_is_the_sample_deviation():
    assert spread([1.0, 2.0, 6.0]) == Spread(3.0, pytest.approx(math.sqrt((4 + 1 + 9) / 2)), 3)
    assert spread([0.5]) == Spread(0.5, None, 1)
    with pytest.raises(ValueError, match="at least one run"):
        spread([])


def test_ranks_put_failures_last_and_share_between_equals():
    assert ranks({"x": None, "y": 0.4, "z": None, "w": 0.4}) == {"x": 3.5, "y": 1.5, "z": 3.5, "w": 1.5}


def test_placings_are_among_rows_that_every_data_set_has():
    first = {"a": 0.9, "b": 0.8, "only here": 0.99, "c": 0.1}
    second = {"c": 0.9, "b": 0.8, "a": 0.85}
    placed = placings([first, second])
    assert {key: one.average for key, one in placed.items()} == {"a": 1.5, "c": 2.0, "b": 2.5}
    assert list(placed) == ["a", "c", "b"]
    assert placed["a"].ranks == (1, 2)
    assert placings([]) == {}


def test_a_clear_difference_is_named_with_its_numbers():
    draw = np.random.default_rng(0)
    second = (draw.random((3, 400)) < 0.6).astype(float)
    first = np.maximum(second, draw.random((3, 400)) < 0.4)
    gap = difference(row(first), row(second))
    better = compare(gap, bootstrap_rows([gap])[0])
    assert better.verdict == "better"
    assert better.difference.value == pytest.approx(first.mean() - second.mean())
    assert str(better).startswith("better by ")
    gap = difference(row(second), row(first))
    worse = compare(gap, bootstrap_rows([gap])[0])
    assert worse.verdict == "worse"
    assert str(worse).split(" [")[0] == str(better).replace("better", "worse").split(" [")[0]


def test_the_same_answers_are_no_difference():
    gap = row(np.zeros((3, 50)))
    same = compare(gap, bootstrap_rows([gap], resamples=200)[0])
    assert (same.verdict, same.p, str(same)) == (
        "no difference",
        1.0,
        "no difference (+0.0 [-7.1, +7.1]), p = 1.00",
    )


def test_a_family_is_judged_by_corrected_p():
    alone = Comparison(Score(0.02, 0.001, 0.04), 0.03, 0.03, 3)
    assert alone.verdict == "better"
    first, second = as_family([alone, alone])
    assert (first.adjusted, first.verdict, second.p) == (0.06, "no difference", 0.03)


def test_a_paired_comparison_refuses_other_seeds():
    with pytest.raises(ValueError, match="the same seeds, examples and metric"):
        difference(row(np.ones((2, 5))), row(np.ones((3, 5))))
