"""What a fusion learns from the same reader, where that reads the neighbours as text: NLL + w·KL(teacher ‖ student).

Dims: R decisions, C classes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from peft_rag.tasks.base import LEAST_LOG_PROB


def divergence(teacher: Tensor, student: Tensor) -> Tensor:
    """Return KL(p ‖ q) = Σ_c p_c·(log p_c - log q_c) in nats, the mean over decisions.

    Where only the right token of each decision is known of a written text, ``(R,)``, the distributions are those over
    this token and all others, {p, 1-p}: no more than the divergence over the whole vocabulary.

    Args:
        teacher: log p in nats, ``(R, C)``, ``(R, C, 2)`` or ``(R,)``; no gradient reaches it.
        student: log q, of the same shape. A log-probability counts as `LEAST_LOG_PROB` at least.
    """
    p, q = (_whole(one).clamp(min=LEAST_LOG_PROB) for one in (teacher.detach(), student))
    return (p.exp() * (p - q)).sum(-1).mean()


def _whole(log_probs: Tensor) -> Tensor:
    """Put the probability of all other tokens beside that of the right one, where that is all there is."""
    if log_probs.dim() > 1:
        return log_probs
    # log(1 - p) is finite, and has a finite gradient, where p rounds to 1.
    nearly = -(torch.finfo(log_probs.dtype).tiny ** 0.25)
    return torch.stack([log_probs, torch.log(-torch.expm1(log_probs.clamp(max=nearly)))], -1)
