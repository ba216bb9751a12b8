"""Main metrics as functions of sums over examples, so that they can be drawn again without the task.

An example adds one row of tallies, and a metric depends on the means of their columns alone: accuracy on the share that
is right, entity F1 on the entities found rightly, predicted and actual, likelihood on log-probabilities and tokens.

Dims: N examples, M columns.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Statistic:
    """A metric of column means.

    Attributes:
        name: as files say it.
        columns: what an example adds, one name a column.
        of: from column means ``(…, M)`` to the metric ``(…)``.
        slopes: from column means ``(…, M)`` to the metric's derivatives by them, ``(…, M)``.
        linear: whether the metric of a mean is the mean of the metric.
    """

    name: str
    columns: tuple[str, ...]
    of: Callable[[FloatArray], FloatArray]
    slopes: Callable[[FloatArray], FloatArray]
    linear: bool = False


def _f1(means: FloatArray) -> FloatArray:
    right, decisions = means[..., 0], means[..., 1] + means[..., 2]
    return np.asarray(np.divide(2 * right, decisions, out=np.zeros_like(right), where=decisions > 0))


def _f1_slopes(means: FloatArray) -> FloatArray:
    right, decisions = means[..., 0], means[..., 1] + means[..., 2]
    safe = np.where(decisions > 0, decisions, np.inf)
    return np.stack([2 / safe, -2 * right / safe**2, -2 * right / safe**2], axis=-1)


def _exp_mean(means: FloatArray) -> FloatArray:
    return np.asarray(np.exp(means[..., 0] / means[..., 1]))


def _exp_mean_slopes(means: FloatArray) -> FloatArray:
    value, count = _exp_mean(means), means[..., 1]
    return np.stack([value / count, -value * means[..., 0] / count**2], axis=-1)


MEAN = Statistic("mean", ("score",), lambda means: means[..., 0], np.ones_like, linear=True)
"""Σ score / N: accuracy, exact match, a token F1 of each answer."""

F1 = Statistic("f1", ("right", "predicted", "actual"), _f1, _f1_slopes)
"""2·Σ right / (Σ predicted + Σ actual), 0 where there is neither: entities, labels of several."""

EXP_MEAN = Statistic("exp_mean", ("log_probability", "tokens"), _exp_mean, _exp_mean_slopes)
"""exp(Σ log p / Σ tokens): the likelihood of a token, one over the perplexity."""

STATISTICS = {one.name: one for one in (MEAN, F1, EXP_MEAN)}
