"""Bootstrap intervals over examples."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Score:
    """A score on a set of examples with its 95% bootstrap interval.

    Attributes:
        value: the score on the examples themselves.
        low: lower end of the interval.
        high: upper end of the interval.
        percent: whether it is a share, and written in percent.
    """

    value: float
    low: float
    high: float
    percent: bool = True

    def __str__(self) -> str:
        scale = 100 if self.percent else 1
        return f"{scale * self.value:.1f} [{scale * self.low:.1f}, {scale * self.high:.1f}]"

    def to_dict(self) -> dict[str, float]:
        """Return value and interval; ``percent`` is there, and false, where the score is no share."""
        plain = {} if self.percent else {"percent": False}
        return {"value": self.value, "low": self.low, "high": self.high, **plain}


def in_percent(plain: Iterable[str]) -> str:
    """Say how scores are written: in percent, but for those that are no shares.

    >>> in_percent([]), in_percent(["perplexity"])
    ('in percent', 'in percent (perplexity as it is)')

    Args:
        plain: names of scores that are no shares, each as often as it likes.
    """
    names = ", ".join(dict.fromkeys(plain))
    return f"in percent ({names} as it is)" if names else "in percent"


def unseen(examples: int, level: float = 0.95) -> float:
    """Return the largest share of cases that N examples may all have missed.

    r = 1 - (α/2)^(1/N), with α = 1 - ``level``: N draws miss a share of r with a probability of α/2. Where all examples
    are alike no draw of them varies, but others of their kind may: 30 right of 30 leave room for 11.6% that are wrong.

    Source: Clopper & Pearson 1934, doi:10.1093/biomet/26.4.404.
    """
    return float(1.0 - ((1.0 - level) / 2) ** (1.0 / examples))


def bootstrap(
    statistic: Callable[..., float],
    *arrays: NDArray[Any],
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
    biased: bool = False,
) -> Score:
    """Score arrays that run over the same examples, with a percentile-bootstrap interval.

    The interval holds the middle ``level`` of the statistic over ``resamples`` draws of N examples with replacement. A
    statistic that cannot be below 0 and that few examples make too large is larger still on draws of them: as much as
    the draws lie above the statistic, that lies above the truth. Its interval [l, h] is therefore mirrored about its
    value v, [max(0, 2v - h), max(v, 2v - l)], which is known as the basic bootstrap. Where no draw varies because all
    examples are right, or all wrong, the interval has room for what they did not show (`unseen`).

    Args:
        statistic: from the arrays (in order) to one number.
        arrays: each with N rows.
        resamples: number of draws; with 0 the interval is the score itself.
        level: share of the draws inside the interval.
        seed: of the draws.
        biased: whether the statistic is one that few examples make too large.

    Raises:
        ValueError: there is no example, or the arrays differ in length.

    Source: Efron & Tibshirani 1993, chapter 13; Davison & Hinkley 1997, section 5.2.
    """
    lengths = {len(array) for array in arrays}
    if len(lengths) != 1 or lengths == {0}:
        raise ValueError(
            f"bootstrap needs arrays of one length over at least one example, got lengths {sorted(lengths)}"
        )
    size = lengths.pop()
    value = float(statistic(*arrays))
    if not resamples:
        return Score(value, value, value)
    generator = np.random.default_rng(seed)
    draws = np.empty(resamples)
    for index in range(resamples):
        chosen = generator.integers(0, size, size)
        draws[index] = statistic(*(array[chosen] for array in arrays))
    tail = 50.0 * (1.0 - level)
    low, high = np.percentile(draws, [tail, 100.0 - tail])
    if low == high == value and value in (0.0, 1.0) and not biased:
        room = unseen(size, level)
        return Score(value, max(0.0, value - room), min(1.0, value + room))
    if biased:
        low, high = max(0.0, 2 * value - high), max(value, 2 * value - low)
    return Score(value, float(low), float(high))
