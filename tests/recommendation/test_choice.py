from __future__ import annotations

import random
from math import comb

import pytest

from peft_rag.evaluation.comparison import BETTER, SAME
from peft_rag.recommendation.candidates import Candidate
from peft_rag.recommendation.choice import Standing, against, choose, survivors
from peft_rag.recommendation.trial import Answered, Trial


def answered(right: list[float], loss: float = 0.5) -> Answered:
    return Answered(sum(right) / len(right), loss, tuple((one,) for one in right))


def first(count: int, of: int = 200) -> list[float]:
    """The first so many of some examples are right."""
    return [float(place < count) for place in range(of)]


def standing(method: str, size: int, **answers: Answered) -> Standing:
    trial = Trial("done", 30, 1.0, answers=answers)
    return Standing(Candidate(method, {}, tuple(answers), size), (trial,))


def test_rung_keeps_the_best_by_score_then_loss_then_bytes_and_drops_what_failed() -> None:
    worse = standing("worse", 1, none=answered(first(100)))
    large = standing("large", 9, none=answered(first(150), 0.4))
    small = standing("small", 5, none=answered(first(150), 0.4))
    sure = standing("sure", 99, none=answered(first(150), 0.3))
    failed = Standing(Candidate("failed", {}, ("none",), 0), (Trial("failed", 30, 1.0, error="no luck"),))
    found = survivors([failed, worse, large, small, sure], 3)
    assert [one.candidate.method for one in found] == ["sure", "small", "large"]
    assert len(survivors([failed, worse], 5)) == 1


def test_smaller_finalist_is_taken_where_the_best_is_better_within_the_noise_only() -> None:
    best = standing("lora", 160_000, none=answered(first(152)))
    near = standing("bitfit", 40_000, none=answered(first(150)))
    nearest = standing("adapter", 90_000, none=answered(first(151)))
    far = standing("head", 5_000, none=answered(first(120)))
    choice = choose([best, near, nearest, far])
    assert choice.standing is near
    assert choice.best is best
    verdicts = {rival.second.candidate.method: rival.comparison.verdict for rival in choice.rivals}
    assert verdicts == {"bitfit": SAME, "adapter": SAME, "head": BETTER}


def test_larger_finalist_is_never_taken_for_the_best() -> None:
    best = standing("bitfit", 10, none=answered(first(150)))
    other = standing("full", 10_000, none=answered(first(149)))
    choice = choose([other, best])
    assert (choice.standing, choice.rivals) == (best, ())


@pytest.mark.parametrize(("gained", "fusion"), [(4, "none"), (5, "knn"), (20, "knn")])
def test_retrieval_must_gain_more_than_the_noise(gained: int, fusion: str) -> None:
    one = standing("lora", 1, none=answered(first(150)), knn=answered(first(150 + gained)))
    choice = choose([one])
    assert choice.fusion == fusion
    assert len(choice.by_fusion) == 1
    assert choice.answered == one.last.answers[fusion]


def test_comparison_is_mcnemars_mid_p_with_the_bootstraps_interval() -> None:
    draw = random.Random(0)
    one = [float(draw.random() < 0.8) for _ in range(60)]
    other = [float(draw.random() < 0.6) for _ in range(60)]
    only_one = sum(a > b for a, b in zip(one, other, strict=True))
    only_other = sum(b > a for a, b in zip(one, other, strict=True))
    n, fewer = only_one + only_other, min(only_one, only_other)
    tail = sum(comb(n, k) for k in range(fewer + 1)) / 2**n
    found = against(answered(one), answered(other))
    assert found.p == pytest.approx(min(1.0, 2 * tail - comb(n, fewer) / 2**n))
    assert found.difference.value == pytest.approx((sum(one) - sum(other)) / 60)
    assert found.difference.low < found.difference.value < found.difference.high
    graded = against(answered([0.2, 0.8, 0.9, 0.4] * 5), answered([0.1, 0.7, 0.8, 0.3] * 5))
    assert graded.verdict == BETTER


def test_nothing_can_be_chosen_of_nothing() -> None:
    failed = Standing(Candidate("failed", {}, ("none",), 0), (Trial("failed", 30, 1.0, error="no luck"),))
    with pytest.raises(ValueError, match="no finalist"):
        choose([failed])
