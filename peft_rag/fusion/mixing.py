"""Two opinions on one question, mixed as probabilities."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def mix(log_model: Tensor, log_neighbours: Tensor, weight: float) -> Tensor:
    """Return log(λ·p_neighbours + (1-λ)·p_model) in nats.

    Stable for p_neighbours = 0, exact for λ = 0 and λ = 1, never above 0. Where the neighbours have no opinion (NaN),
    the model's own stands.

    Args:
        log_model: log p_model in nats, of any shape.
        log_neighbours: log p_neighbours, of the same shape.
        weight: λ in [0, 1].
    """
    import torch

    own = log_model.cpu()
    if weight == 0:
        return own
    floor = torch.finfo(own.dtype).min
    mixed = torch.logaddexp(
        log_neighbours.clamp(min=floor) + math.log(weight),
        own + (math.log1p(-weight) if weight < 1 else floor),
    )
    return torch.where(log_neighbours.isnan(), own, mixed.clamp(max=0.0))
