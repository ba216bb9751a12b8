"""A linear head from a logistic regression on features that are held fixed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor, nn

_CONFIDENT = 6.0
"""Bias, in nats of logit, that says a class seen always, or never, is always, or never, right."""


def fit_probe(head: nn.Module, features: Tensor, targets: Tensor, classes: int, strength: float | None = None) -> None:
    """Set a linear head to a logistic regression, or to one against the rest for each column of 0/1 targets.

    It is fitted to (f - μ)/σ, with μ the mean feature and σ² the mean squared distance from it, and folded back
    into the head, so that a strength means the same on any backbone, however crowded its features are. By default
    the strength is C/10, 1 at least: on validation, 1 served the 11 topics of wiki-topics better than 10, and 10
    the 77 intents of banking77 better than 1.

    Dims: N examples, F of a feature, C classes.

    Args:
        head: linear, from F to C; it may have no bias.
        features: ``(N, F)``.
        targets: classes ``(N,)``, or 0/1 for each ``(N, C)``.
        classes: C.
        strength: inverse of the regularisation; None takes the default.
    """
    import torch

    strength = max(1.0, classes / 10) if strength is None else strength
    raw, wanted = features.double().cpu().numpy(), targets.cpu().numpy()
    mean = raw.mean(axis=0)
    spread = float(np.sqrt(((raw - mean) ** 2).sum(axis=1).mean())) + 1e-9
    inputs = (raw - mean) / spread
    if wanted.ndim == 2:
        fits = [_logistic(inputs, column, strength) for column in wanted.T]
        weight, bias = (np.concatenate(rows) for rows in zip(*fits, strict=True))
    else:
        weight, bias = _one_row_a_class(*_logistic(inputs, wanted, strength), np.unique(wanted), classes)
    with torch.no_grad():
        head.weight.copy_(torch.as_tensor(weight / spread))
        if head.bias is not None:
            head.bias.copy_(torch.as_tensor(bias - weight @ mean / spread))


def _logistic(inputs: Any, wanted: Any, strength: float) -> tuple[Any, Any]:
    """Fit one logistic regression; a constant column becomes a zero weight with a confident bias."""
    from sklearn.linear_model import LogisticRegression

    if len(np.unique(wanted)) == 1:
        return np.zeros((1, inputs.shape[1])), np.array([_CONFIDENT if wanted[0] else -_CONFIDENT])
    model = LogisticRegression(C=strength, max_iter=1000).fit(inputs, wanted)
    return model.coef_, model.intercept_


def _one_row_a_class(weight: Any, bias: Any, present: Any, classes: int) -> tuple[Any, Any]:
    """Spread fitted rows over all classes: scikit-learn gives one row for two, and none for a class never seen."""
    if len(present) == 1:
        bias = np.array([_CONFIDENT])
    elif len(present) == 2:
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    all_weights, all_biases = np.zeros((classes, weight.shape[1])), np.full(classes, -_CONFIDENT)
    all_weights[present], all_biases[present] = weight, bias
    return all_weights, all_biases
