"""The mean over some tokens of an input."""

from __future__ import annotations

from torch import Tensor


def mean_pools(hidden: Tensor, pool_inputs: Tensor, pool_tokens: Tensor) -> Tensor:
    """Return the mean state of each pool, ``(P, D)``; zero for a pool without tokens.

    Args:
        hidden: last hidden states of I inputs, ``(I, T, D)``.
        pool_inputs: the input that each pool is of, ``(P,)``.
        pool_tokens: its tokens, ``(P, L)``; -1 where it has fewer.
    """
    present = (pool_tokens >= 0).unsqueeze(-1).to(hidden.dtype)
    states = hidden[pool_inputs.unsqueeze(-1), pool_tokens.clamp(min=0)]
    return (states * present).sum(1) / present.sum(1).clamp(min=1)
