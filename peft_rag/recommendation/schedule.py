"""How many candidates are trained for how many steps: successive halving, and how it is fitted to the time there is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

LEAST_STEPS = 10
"""A run shorter than this says little of what a longer one would be."""


@dataclass(frozen=True)
class Rung:
    """One round: so many candidates, each trained anew for so many steps."""

    candidates: int
    steps: int


@dataclass(frozen=True)
class Pace:
    """What runs take on this machine, in seconds.

    Attributes:
        run: beside the steps: loading, encoding, looking at validation.
        step: one optimiser step.
        test: what the final run does more than the others: the test split.
    """

    run: float
    step: float
    test: float = 0.0

    def of(self, rungs: Sequence[Rung], final_steps: int) -> float:
        """Return the seconds of all rungs and of the final run after them."""
        searching = sum(rung.candidates * (self.run + rung.steps * self.step) for rung in rungs)
        return searching + self.run + self.test + final_steps * self.step

    def affordable(self, counts: Sequence[int], eta: int, seconds: float) -> int:
        """Return the largest number of full steps with which rungs of these sizes and the final run fit the seconds."""
        shares = [count * float(eta) ** (place + 1 - len(counts)) for place, count in enumerate(counts)]
        left = seconds - self.of([Rung(count, 0) for count in counts], 0)
        return max(0, int(left / (self.step * (sum(shares) + 1))))


def halving(candidates: int, full_steps: int, eta: int) -> list[Rung]:
    """Plan the rungs.

    With n candidates, R full steps and K rungs, rung k = 0 … K-1 trains

        n_k = ⌈n / η^k⌉ candidates for r_k = max(1, round(R / η^(K-1-k))) steps each,

    so that each survivor gets η times the steps of the rung before, the better 1/η of the candidates survive, and the
    last rung is as long as the final run. K is the largest number with which the last rung still compares two
    candidates (n_{K-1} ≥ 2) and the first is worth looking at (R / η^(K-1) ≥ 10).

    Each run begins anew rather than from the checkpoint of the rung before: the learning rate falls to 0 over the steps
    of a run, so a run cut at r steps and trained on has had another schedule than one planned for more, and methods
    that like long warm-up would be judged by the wrong end of theirs. Anew costs less than 1/(η-1) of a search more,
    and the last rung's winner is bit for bit the final run.

    Args:
        candidates: n, one at least.
        full_steps: R.
        eta: η, 2 at least.

    Source: Jamieson & Talwalkar 2016, arXiv:1502.07943; the geometric steps: Li et al. 2018, arXiv:1603.06560.
    """
    count = 1
    while math.ceil(candidates / eta**count) >= 2 and full_steps / eta**count >= LEAST_STEPS:
        count += 1
    return _rungs(candidates, full_steps, eta, count)


def fit(widths: Sequence[int], full_steps: int, eta: int, pace: Pace, seconds: float) -> tuple[int, list[Rung]]:
    """Choose how wide to search so that everything ends in time.

    The widest search that leaves each run its full steps is taken; where there is none, the widest that leaves half of
    them; where there is none either, the one that leaves most, which may be a single step.

    Args:
        widths: numbers of candidates to choose from, the widest first.
        full_steps: of the final run, if time allows.
        eta: η.
        pace: of this machine.
        seconds: that are left.

    Returns:
        The place in ``widths``, and the rungs.
    """
    plans = []
    for place, width in enumerate(widths):
        for count in range(len(halving(width, full_steps, eta)), 0, -1):
            sizes = [rung.candidates for rung in _rungs(width, full_steps, eta, count)]
            steps = min(full_steps, pace.affordable(sizes, eta, seconds))
            if count == 1 or steps / eta ** (count - 1) >= LEAST_STEPS:
                plans.append((place, count, steps))
    enough = next((plan for plan in plans if plan[2] >= full_steps), None)
    half = next((plan for plan in plans if 2 * plan[2] >= full_steps), None)
    place, count, steps = enough or half or max(plans, key=lambda plan: plan[2])
    return place, _rungs(widths[place], max(1, steps), eta, count)


def shrink(rungs: Sequence[Rung], eta: int, pace: Pace, seconds: float, done_steps: int) -> list[Rung]:
    """Fit the rungs that are left to the time that is left, after those before took more than was thought.

    Returns:
        The same rungs where they fit; shorter ones; or none where not even a few steps more than ``done_steps``, what
        the last rung had, would be left to each.
    """
    if not rungs or pace.of(rungs, rungs[-1].steps) <= seconds:
        return list(rungs)
    steps = pace.affordable([rung.candidates for rung in rungs], eta, seconds)
    shorter = [Rung(rung.candidates, share) for rung, share in zip(rungs, _steps(steps, eta, len(rungs)), strict=True)]
    if shorter[0].steps > done_steps:
        return shorter
    return shrink(rungs[1:], eta, pace, seconds, done_steps)


def _rungs(candidates: int, full_steps: int, eta: int, count: int) -> list[Rung]:
    sizes = [math.ceil(candidates / eta**place) for place in range(count)]
    return [Rung(size, steps) for size, steps in zip(sizes, _steps(full_steps, eta, count), strict=True)]


def _steps(full_steps: int, eta: int, count: int) -> list[int]:
    return [max(1, round(full_steps / eta ** (count - 1 - place))) for place in range(count)]
