"""Two opinions on one question, mixed as probabilities."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def mix(log_model: Tensor, log_neighbours: Tensor, weight: float | Tensor) -> Tensor:
    """Return log(λ·p_neighbours + (1-λ)·p_model) in nats.

    Stable for p_neighbours = 0, exact for λ = 0 and λ = 1, never above 0. Where the neighbours have no opinion (NaN),
    the model's own stands. Gradients reach λ where it is a tensor.

    Args:
        log_model: log p_model in nats, ``(R, …)``.
        log_neighbours: log p_neighbours, of the same shape.
        weight: λ in [0, 1], one for all, or inside (0, 1) one a row, ``(R,)``.
    """
    import torch

    own = log_model.cpu()
    floor = torch.finfo(own.dtype).min
    silent = log_neighbours.isnan()
    if isinstance(weight, torch.Tensor):
        share = weight.reshape(-1, *[1] * (own.dim() - 1))
        # A row without an opinion must not send NaN into the gradient of what decides λ.
        voted = torch.where(silent, 0.0, log_neighbours).clamp(min=floor)
        mixed = torch.logaddexp(voted + share.log().to(own.dtype), own + torch.log1p(-share).to(own.dtype))
    elif weight == 0:
        return own
    else:
        mixed = torch.logaddexp(
            log_neighbours.clamp(min=floor) + math.log(weight),
            own + (math.log1p(-weight) if weight < 1 else floor),
        )
    return torch.where(silent, own, mixed.clamp(max=0.0))
