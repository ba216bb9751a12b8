"""McNemar's exact test of whether two classifiers get the same share of the same examples right."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class McNemar:
    """The test of two models on one set of examples.

    Attributes:
        only_first: examples that the first model alone gets right.
        only_second: examples that the second model alone gets right.
        exact: two-sided binomial p; never rejects too often, and too seldom on few examples.
        mid_p: the same with half the probability of what was observed; nearer to its level.
    """

    only_first: int
    only_second: int
    exact: float
    mid_p: float


def mcnemar(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> McNemar:
    """Compare which examples two models get right.

    Only the n = b + c examples that one model alone gets right speak; under equal accuracy b follows Binomial(n, ½).
    exact = min(1, 2·P(B ≤ min(b, c))), and mid_p = 2·P(B ≤ min(b, c)) - P(B = min(b, c)).

    The test is for one model against one model: scores of several seeds on the same examples are not independent and
    must not be added up for it; see `peft_rag.evaluation.comparison` for these.

    Args:
        first: whether the first model gets each example right, ``(N,)``.
        second: the same of the second, ``(N,)``.

    Raises:
        ValueError: they are not as many.

    Source: McNemar 1947, doi:10.1007/BF02295996; mid-p: Fagerland, Lydersen & Laake 2013, doi:10.1186/1471-2288-13-91.
    """
    from scipy.stats import binom

    if first.shape != second.shape:
        raise ValueError(f"McNemar's test needs the same examples twice, got shapes {first.shape} and {second.shape}")
    only_first, only_second = int((first & ~second).sum()), int((~first & second).sum())
    fewer, total = min(only_first, only_second), only_first + only_second
    both_tails = 2.0 * float(binom.cdf(fewer, total, 0.5))
    mid_p = both_tails - float(binom.pmf(fewer, total, 0.5))
    return McNemar(only_first, only_second, min(1.0, both_tails), min(1.0, mid_p))
