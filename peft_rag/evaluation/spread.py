"""Mean and standard deviation over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Spread:
    """What repeated runs of one thing gave.

    Attributes:
        mean: over the runs.
        deviation: sample standard deviation over the runs, in the unit of the mean; None for a single run.
        count: number of runs.
    """

    mean: float
    deviation: float | None
    count: int


def spread(values: Sequence[float]) -> Spread:
    """Return mean m = Σ_s x_s / S and standard deviation sqrt(Σ_s (x_s - m)² / (S - 1)) of S runs.

    >>> spread([0.25, 0.75]).mean
    0.5

    Raises:
        ValueError: there is no run.
    """
    if not len(values):
        raise ValueError("mean and standard deviation need at least one run, got none")
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return Spread(float(np.mean(values)), deviation, len(values))
