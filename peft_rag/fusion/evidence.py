"""What speaks for and against neighbours, as numbers that are known before the answer is.

Dims: R decisions, K neighbours, C classes, E numbers of evidence.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from peft_rag.retrieval.base import NO_POSITION

if TYPE_CHECKING:
    from torch import Tensor

    from peft_rag.fusion.base import Memory
    from peft_rag.retrieval.base import Neighbours


def kinds_of(memory: Memory) -> Tensor:
    """Return a number for what each row of a memory says, equal where two say the same, ``(M,)``.

    Where an example takes several decisions the first column of targets is the class or token; where it takes one, a
    row of several columns is a set of labels.
    """
    targets = memory.targets.cpu()
    if targets.dim() == 1:
        return targets
    if memory.decisions is not None:
        return targets[:, 0]
    kinds: Tensor = torch.unique(targets, dim=0, return_inverse=True)[1]
    return kinds


def evidence(found: Neighbours, kinds: Tensor, k: int, log_probs: Tensor | None = None) -> Tensor:
    """Return the evidence on R decisions, ``(R, E)``, in float64; 0 where a decision has no neighbour at all.

        1-s_1 … 1-s_k   distances of the neighbours, nearest first
        c_1 … c_k       c_i = |{y_1 … y_i}|, how many different things the i nearest say
        max_y log p(y)  the model's confidence, and
        -Σ_y p(y)·log p(y)   its entropy, both in nats and summed over the labels where each is judged by itself

    A neighbour that is missing stands at the distance of the last that is there, and says nothing new.

    Args:
        found: neighbours of the decisions, nearest first; those beyond k are left out.
        kinds: what each row of the memory says, from `kinds_of`.
        k: K, the numbers of each kind.
        log_probs: the model's own in nats, ``(R, C)`` or ``(R, C, 2)``; without them E = 2K, else 2K + 2.

    Source: Zheng et al. 2021, arXiv:2105.13022 (distances and counts); He et al. 2021, arXiv:2109.04212 (confidence and
    entropy).
    """
    places = _padded(np.asarray(found.positions), k, NO_POSITION)
    there = places != NO_POSITION
    last = np.maximum(there.sum(1) - 1, 0)
    scores = _padded(np.asarray(found.scores, dtype=np.float64), k, -np.inf)
    scores = np.where(there, scores, scores[np.arange(len(last)), last][:, None])
    scores = np.where(there.any(1)[:, None], scores, 1.0)
    said = np.where(there, kinds.numpy()[np.maximum(places, 0)], -1)
    new = np.stack([there[:, i] & (said[:, :i] != said[:, i : i + 1]).all(1) for i in range(k)], axis=1)
    parts = [torch.from_numpy(1 - scores), torch.from_numpy(new.cumsum(1).astype(np.float64))]
    if log_probs is not None:
        own = log_probs.detach().cpu().double()
        parts += [
            one.reshape(len(own), -1).sum(1, keepdim=True) for one in (own.amax(-1), torch.special.entr(own.exp()))
        ]
    return torch.cat(parts, dim=1)


def _padded(values: np.ndarray, k: int, filler: float) -> np.ndarray:
    """Return the first k columns of rows ``(R, …)``, filled up to k."""
    kept = values[:, :k]
    return np.pad(kept, ((0, 0), (0, k - kept.shape[1])), constant_values=filler)
