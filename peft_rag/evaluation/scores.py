"""Scores of classifiers in NumPy, fast enough to be taken a thousand times for one interval.

Dims: N examples, C classes. Single-label predictions and references are class indices ``(N,)``; multi-label ones are
0/1 matrices ``(N, C)``.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]


def accuracy(predictions: IntArray, references: IntArray) -> float:
    """Return the share of examples predicted exactly right, in [0, 1]; for multi-label, all labels of an example.

    >>> accuracy(np.array([0, 1, 1]), np.array([0, 1, 0]))
    0.6666666666666666
    """
    right = predictions == references
    return float((right.all(axis=1) if right.ndim == 2 else right).mean())


def macro_f1(predictions: IntArray, references: IntArray, ignored: int | None = None) -> float:
    """Return the mean over classes of F1 = 2·TP / (2·TP + FP + FN), in [0, 1].

    Classes that occur neither in the predictions nor in the references are left out of the mean, and so is one that
    is ``ignored``: the one that says "nothing".
    """
    hits, predicted, actual = _counts(predictions, references, ignored)
    occurring = predicted + actual > 0
    if not occurring.any():
        return 0.0
    return float((2.0 * hits[occurring] / (predicted + actual)[occurring]).mean())


def micro_f1(predictions: IntArray, references: IntArray, ignored: int | None = None) -> float:
    """Return F1 over all label decisions together, in [0, 1]; for single-label data it equals accuracy.

    With an ``ignored`` class, the one that says "nothing", TP, FP and FN of the others alone are counted.
    """
    hits, predicted, actual = _counts(predictions, references, ignored)
    decisions = predicted.sum() + actual.sum()
    return float(2.0 * hits.sum() / decisions) if decisions else 0.0


def matthews_correlation(predictions: IntArray, references: IntArray) -> float:
    """Return Matthews' correlation for several classes, in [-1, 1]; 0 when either side is constant.

    R_K = (c·s - Σ_k p_k·t_k) / sqrt((s² - Σ_k p_k²)(s² - Σ_k t_k²)), with c right, s examples, p_k predicted and t_k
    actual counts of class k.

    Source: Gorodkin 2004, doi:10.1016/j.compbiolchem.2004.09.006.
    """
    hits, predicted, actual = _counts(predictions, references)
    total = float(len(references))
    covariance = hits.sum() * total - float(predicted @ actual)
    spread = (total**2 - float(predicted @ predicted)) * (total**2 - float(actual @ actual))
    return float(covariance / np.sqrt(spread)) if spread > 0 else 0.0


def calibration_error(confidence: FloatArray, right: FloatArray, bins: int = 15) -> float:
    """Return the expected calibration error Σ_b |B_b|/N · |accuracy(B_b) - confidence(B_b)| over equal-width bins.

    Args:
        confidence: probability of each decision, ``(N,)`` or ``(N, C)``.
        right: 1.0 where the decision is right, else 0.0, of the same shape.
        bins: number of equal-width bins over [0, 1].

    Source: Guo et al. 2017, arXiv:1706.04599.
    """
    which = np.minimum((confidence * bins).astype(np.int64), bins - 1)
    gap = np.bincount(which.ravel(), weights=(right - confidence).ravel(), minlength=bins)
    return float(np.abs(gap).sum() / confidence.size)


def _counts(
    predictions: IntArray, references: IntArray, ignored: int | None = None
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return, per class, how often it was right, predicted and actual, each ``(C,)``; 0 for the one ignored."""
    if references.ndim == 2:
        hit, predicted, actual = (
            (predictions * references).sum(axis=0),
            predictions.sum(axis=0),
            references.sum(axis=0),
        )
    else:
        classes = int(max(predictions.max(), references.max())) + 1
        hit = np.bincount(references[predictions == references], minlength=classes)
        predicted, actual = (np.bincount(side, minlength=classes) for side in (predictions, references))
    counted = np.arange(len(hit)) != (-1 if ignored is None else ignored)
    return hit * counted.astype(float), predicted * counted.astype(float), actual * counted.astype(float)
