"""Scores of answers that are classes, with their intervals."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from peft_rag.evaluation.bootstrap import Score


def class_scores(
    log_probs: Tensor,
    targets: Tensor,
    metrics: Mapping[str, Callable[..., float]],
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Score]:
    """Score the likeliest classes by some metrics, and how far their probabilities can be believed (``ece``).

    Dims: R decisions, C classes.

    Args:
        log_probs: in nats, ``(R, C)``, or ``(R, C, 2)`` where each class is or is not.
        targets: ``(R,)``, or 0/1 in ``(R, C)``.
        metrics: by name, from predictions and references to a number.
        resamples: draws of the bootstrap; with 0 the intervals are the scores.
        seed: of these.
    """
    from peft_rag.evaluation.bootstrap import bootstrap
    from peft_rag.evaluation.scores import calibration_error

    references = targets.cpu().numpy()
    predictions = log_probs.argmax(-1).cpu().numpy()
    result = {
        name: bootstrap(score, predictions, references, resamples=resamples, seed=seed)
        for name, score in metrics.items()
    }
    sure = log_probs.amax(-1).exp().double().cpu().numpy()
    right = (predictions == references).astype(float)
    result["ece"] = bootstrap(calibration_error, sure, right, resamples=resamples, seed=seed, biased=True)
    return result


def f1_tally(right: Tensor, predicted: Tensor, actual: Tensor) -> NDArray[np.float64]:
    """Stack what each example adds ``(B,)`` into the columns of the statistic ``f1``, ``(B, 3)``."""
    import torch

    counts: NDArray[np.float64] = torch.stack([right, predicted, actual], dim=-1).double().cpu().numpy()
    return counts
