"""Neighbours' tokens and the model's, mixed while a text is written."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import LogitsProcessor

from peft_rag.fusion.mixing import mix
from peft_rag.retrieval.base import NO_POSITION

if TYPE_CHECKING:
    from peft_rag.fusion.base import Memory
    from peft_rag.retrieval.base import Neighbours

Share = Callable[["Neighbours"], "float | Tensor"]
"""Returns λ of each row, ``(B,)``, or one for all, given the neighbours that vote."""


class NeighbourTokens(LogitsProcessor):  # type: ignore[misc]
    """p(v|x, y_<t) = λ·Σ_z π_z·[y_z = v] + (1-λ)·p_model(v), z over the states nearest to the one that predicts.

    Dims: B rows, V tokens of the vocabulary, M remembered decisions, F of a state.
    """

    def __init__(self, memory: Memory, k: int, temperature: float, weight: float | Share) -> None:
        """Remember what is searched.

        Args:
            memory: of the training texts: their tokens, and the states that predict these.
            k: neighbours that vote.
            temperature: T of π = softmax(s/T).
            weight: λ, or what decides it for each row.
        """
        self.memory, self.tokens = memory, memory.targets[:, 0]
        self.k, self.temperature, self.weight = k, temperature, weight
        self.states: Tensor | None = None
        self.forbidden: Sequence[Collection[int]] = ()

    @contextmanager
    def listening(self, head: nn.Module, forbidden: Sequence[Collection[int]] = ()) -> Iterator[None]:
        """Note the last state that the head is given, within the block.

        Args:
            head: turns states into logits.
            forbidden: the remembered decisions that each text must not see; none where nothing is forbidden.
        """

        def note(module: nn.Module, given: tuple[Any, ...]) -> None:
            self.states = given[0][:, -1]

        handle = head.register_forward_pre_hook(note)
        self.forbidden = forbidden
        try:
            yield
        finally:
            handle.remove()

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Turn logits ``(B, V)`` into the mixture's log-probabilities."""
        assert self.states is not None
        # Beams of one text stand after each other.
        hidden = [rows for rows in self.forbidden for _ in range(len(self.states) // len(self.forbidden))]
        found = self.memory.nearest(self.states, self.k, hidden or None)
        shares = torch.as_tensor(found.scores / self.temperature).softmax(-1)
        tokens = self.tokens[torch.as_tensor(found.positions).clamp(min=0)]
        votes = torch.zeros(scores.shape).scatter_add(1, tokens, shares.float())
        votes[torch.as_tensor(found.positions == NO_POSITION).all(1)] = (
            torch.nan
        )  # without neighbours the model's stands
        own = scores.float().log_softmax(-1)
        weight = self.weight(found) if callable(self.weight) else self.weight
        return mix(own, votes.log(), weight).to(scores.device)
