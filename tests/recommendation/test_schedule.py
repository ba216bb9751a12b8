from __future__ import annotations

from itertools import pairwise

import pytest

from peft_rag.recommendation.schedule import LEAST_STEPS, Pace, Rung, fit, halving, shrink


def rungs_by_hand(candidates: int, full_steps: int, eta: int) -> list[Rung]:
    """Walk down from the last rung's steps, then up again dropping candidates, one rung at a time."""
    steps = [float(full_steps)]
    left = candidates
    while True:
        fewer = 0
        for place in range(left):
            if place % eta == 0:
                fewer += 1
        if fewer < 2 or steps[0] / eta < LEAST_STEPS:
            break
        steps.insert(0, steps[0] / eta)
        left = fewer
    rungs = []
    left = candidates
    for given in steps:
        rungs.append(Rung(left, max(1, round(given))))
        left = len(range(0, left, eta))
    return rungs


@pytest.mark.parametrize("candidates", [1, 2, 3, 4, 6, 7, 16, 18, 27, 50])
@pytest.mark.parametrize("full_steps", [1, 9, 30, 90, 120, 1000])
@pytest.mark.parametrize("eta", [2, 3, 4])
def test_rungs_are_those_of_a_plain_loop(candidates: int, full_steps: int, eta: int) -> None:
    assert halving(candidates, full_steps, eta) == rungs_by_hand(candidates, full_steps, eta)


def test_rungs_of_the_default_search() -> None:
    assert halving(16, 120, 3) == [Rung(16, 13), Rung(6, 40), Rung(2, 120)]
    assert halving(1, 120, 3) == [Rung(1, 120)]


def seconds_by_hand(rungs: list[Rung], final: int, pace: Pace) -> float:
    total = 0.0
    for rung in rungs:
        for _ in range(rung.candidates):
            total += pace.run
            for _ in range(rung.steps):
                total += pace.step
    return total + pace.run + pace.test + final * pace.step


def test_pace_counts_every_run_step_and_the_test_split() -> None:
    pace, rungs = Pace(2.0, 0.5, 7.0), [Rung(4, 3), Rung(2, 9)]
    assert pace.of(rungs, 9) == pytest.approx(seconds_by_hand(rungs, 9, pace))


@pytest.mark.parametrize("seconds", [20.0, 60.0, 150.0, 400.0, 5000.0])
@pytest.mark.parametrize("pace", [Pace(0.5, 0.05), Pace(2.0, 0.3, 10.0), Pace(0.01, 1.0)])
def test_fitted_schedule_ends_in_time(seconds: float, pace: Pace) -> None:
    place, rungs = fit([16, 11, 6], 120, 3, pace, seconds)
    assert rungs[0].candidates == [16, 11, 6][place]
    assert all(before.steps < after.steps for before, after in pairwise(rungs))
    if rungs[-1].steps > 1:
        rounded_up = sum(rung.candidates for rung in rungs) * pace.step
        assert seconds_by_hand(rungs, rungs[-1].steps, pace) <= seconds + rounded_up


def test_fit_gives_up_width_before_more_than_half_of_the_steps() -> None:
    pace = Pace(1.0, 0.1)
    assert fit([16, 11, 6], 120, 3, pace, 1e6) == (0, halving(16, 120, 3))
    wide = halving(16, 120, 3)
    enough_for_wide = pace.of(wide, 120)
    place, rungs = fit([16, 11, 6], 120, 3, pace, 0.9 * enough_for_wide)
    assert place > 0
    assert rungs[-1].steps >= 60
    place, rungs = fit([16, 11, 6], 120, 3, pace, 20.0)
    assert place == 2
    assert rungs[-1].steps < 60


def test_shrink_keeps_what_fits_shortens_what_does_not_and_gives_up_rungs_that_would_say_nothing_new() -> None:
    left = [Rung(6, 40), Rung(2, 120)]
    assert shrink(left, 3, Pace(1.0, 0.1), 1000.0, 13) == left
    shorter = shrink(left, 3, Pace(1.0, 0.3), 130.0, 13)
    assert [rung.candidates for rung in shorter] == [6, 2]
    assert 13 < shorter[0].steps < 40
    assert shrink(left, 3, Pace(1.0, 1.0), 80.0, 13) == [Rung(2, 25)]
    assert shrink(left, 3, Pace(1.0, 1.0), 10.0, 13) == []
