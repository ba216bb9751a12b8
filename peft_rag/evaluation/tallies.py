"""What the answers of trained models add up to, example by example, and what a metric makes of it.

Dims: S seeds, N examples, M columns of tallies, R resamples.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from peft_rag.evaluation.statistics import FloatArray, Statistic


class Drawn(Protocol):
    """A quantity of S models on N examples that can be drawn again over other examples."""

    @property
    def scores(self) -> FloatArray:
        """One score for each seed and example, whose mean is the quantity, ``(S, N)``."""

    def draws(self, weights: FloatArray) -> FloatArray:
        """Return the quantity under other weights of the examples: ``(R, N)``, rows that sum to 1, to ``(R,)``."""


@dataclass(frozen=True)
class Tallies:
    """The tallies of one row: a model for each seed, all on the same examples.

    Attributes:
        values: ``(S, N, M)``.
        statistic: the metric.

    Raises:
        ValueError: there is no seed or no example, or the columns are not the statistic's.
    """

    values: FloatArray
    statistic: Statistic

    def __post_init__(self) -> None:
        wanted = len(self.statistic.columns)
        if self.values.ndim != 3 or not self.values.size or self.values.shape[2] != wanted:
            raise ValueError(
                f"'{self.statistic.name}' needs tallies of seeds × examples × {wanted}, at least one of each, got "
                f"shape {self.values.shape}"
            )

    @cached_property
    def scores(self) -> FloatArray:
        """How much each example tells of the metric, to first order: ``(S, N)``.

        l_si = θ(m_s) + θ'(m_s)·(x_si - m_s) with m_s = Σ_i x_si / N: the metric of each seed plus what weighting the
        example more would change. Their mean is the metric; for a mean they are the tallies themselves.

        Source: Davison & Hinkley 1997, Bootstrap Methods and their Application, section 2.7 (empirical influence).
        """
        if self.statistic.linear:
            return self.values[..., 0]
        means = self.values.mean(axis=1)
        moved = np.einsum("snm,sm->sn", self.values - means[:, None], self.statistic.slopes(means))
        return np.asarray(self.statistic.of(means)[:, None] + moved)

    def draws(self, weights: FloatArray) -> FloatArray:
        """Return Σ_s θ(Σ_i w_ri·x_si) / S: ``(R, N)`` to ``(R,)``."""
        if self.statistic.linear:
            return np.asarray(weights @ self.scores.mean(axis=0))
        seeds, examples, columns = self.values.shape
        flat = self.values.transpose(1, 0, 2).reshape(examples, seeds * columns)
        return np.asarray(self.statistic.of((weights @ flat).reshape(-1, seeds, columns)).mean(axis=1))

    def value_on(self, kept: NDArray[np.bool_]) -> float:
        """Return the metric, averaged over seeds, on the examples that a mask ``(N,)`` keeps."""
        return float(self.statistic.of(self.values[:, kept].mean(axis=1)).mean())


@dataclass(frozen=True)
class Gap:
    """One row's metric minus another's, seed by seed, where the difference is no metric of differences."""

    first: Tallies
    second: Tallies

    @cached_property
    def scores(self) -> FloatArray:
        return np.asarray(self.first.scores - self.second.scores)

    def draws(self, weights: FloatArray) -> FloatArray:
        return np.asarray(self.first.draws(weights) - self.second.draws(weights))


def difference(first: Tallies, second: Tallies) -> Tallies | Gap:
    """Return what one row has more than another, paired by seed and example.

    Raises:
        ValueError: they do not hold the same seeds and examples, or are judged by different metrics.
    """
    if first.values.shape != second.values.shape or first.statistic is not second.statistic:
        raise ValueError(
            f"a paired comparison needs the same seeds, examples and metric, got {first.statistic.name} of "
            f"{first.values.shape} and {second.statistic.name} of {second.values.shape}"
        )
    if first.statistic.linear:
        return Tallies(first.values - second.values, first.statistic)
    return Gap(first, second)
