"""Soft tokens made of vectors, and how they stand before an input's own.

Dims: B examples, T tokens, K neighbours, V of a neighbour's vector, m soft tokens of one neighbour, D of a token's
embedding.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from peft_rag.fusion.batching import POOL_INPUTS, POOL_TOKENS

_MEAN_SQUARE_OF_GELU = 0.4252
"""Of GELU(x) for x normally distributed around 0 with variance 1."""

_SAMPLE = 4096

_DECODER = "decoder_input_ids"
_OF_OTHERS = {POOL_TOKENS, _DECODER}
"""What may be as large as an input by chance."""


class Projector(nn.Module):
    """Turns a neighbour's vector into soft tokens: e = W₂·GELU(W₁·√V·d + b₁) + b₂, ``(V → width → m·D)``.

    d has length 1, so that √V·d has entries of size one. W₁ keeps that size, and W₂ starts so that the entries of e
    are as large as those of the backbone's word embeddings, whatever their scale is.

    Source: Cheng et al. 2024, arXiv:2405.13792 (xRAG), which projects one vector to one token.
    """

    def __init__(self, backbone: Any, vector_size: int, width: int, tokens: int) -> None:
        """Make fresh weights.

        Args:
            backbone: a transformers model; its word embeddings are looked up at each call, so that a method may wrap
                them later.
            vector_size: V.
            width: of the hidden layer.
            tokens: m.
        """
        super().__init__()
        # In a tuple the backbone is no submodule: it must be neither saved nor trained with this one.
        self._backbone = (backbone,)
        size, scale = self._word_embeddings()
        self.first = nn.Linear(vector_size, width)
        self.second = nn.Linear(width, tokens * size)
        nn.init.normal_(self.first.weight, std=vector_size**-0.5)
        nn.init.normal_(self.second.weight, std=scale / math.sqrt(_MEAN_SQUARE_OF_GELU * width))
        nn.init.zeros_(self.first.bias)
        nn.init.zeros_(self.second.bias)
        self.tokens = tokens

    def forward(self, vectors: Tensor) -> Tensor:
        """Turn vectors ``(B, K, V)`` into soft tokens ``(B, K·m, D)``, neighbour by neighbour."""
        scaled = vectors.to(self.first.weight.dtype) * math.sqrt(vectors.shape[-1])
        tokens: Tensor = self.second(gelu(self.first(scaled)))
        return tokens.reshape(len(vectors), vectors.shape[1] * self.tokens, -1)

    def embed(self, input_ids: Tensor) -> Tensor:
        """Return the backbone's word embeddings ``(B, T, D)`` of token ids ``(B, T)``."""
        embedded: Tensor = self._backbone[0].get_input_embeddings()(input_ids)
        return embedded

    @contextmanager
    def undisturbed(self) -> Iterator[None]:
        """Within the block, nothing in the backbone is dropped out."""
        training = [module for module in self._backbone[0].modules() if module.training]
        for module in training:
            module.training = False
        try:
            yield
        finally:
            for module in training:
                module.training = True

    def _word_embeddings(self) -> tuple[int, float]:
        """Return D and the root mean square of the entries of word embeddings as the backbone reads them."""
        (backbone,) = self._backbone
        count = len(backbone.get_input_embeddings().weight)
        ids = torch.arange(0, count, max(1, count // _SAMPLE), device=next(backbone.parameters()).device)
        with torch.no_grad():
            embedded = self.embed(ids).float()
        return int(embedded.shape[-1]), float(embedded.square().mean().sqrt())


def put_before(
    soft: Tensor, soft_mask: Tensor, words: Tensor, inputs: dict[str, Tensor], *, left: bool = False
) -> dict[str, Tensor]:
    """Put soft tokens before an input's own, and what is missing or padding of both behind all that is there.

    Every token that is there then has as many tokens before it as its position says. Architectures that count
    positions from the left need not be told them, on whichever side the input is padded, nor need methods that put
    tokens of their own in front.

    Args:
        soft: soft tokens, ``(B, S, D)``.
        soft_mask: 1 for those that are there, ``(B, S)``.
        words: embeddings of the input's tokens, ``(B, T, D)``.
        inputs: ``attention_mask`` and what else goes with these tokens, ``(B, T)`` each, which becomes 0 for soft
            ones; `peft_rag.fusion.batching.POOL_TOKENS` name the same tokens afterwards as before, unless they are the
            decoder's; anything else is handed on as it is.
        left: put what is missing in front of all instead: a text is written that goes on where all inputs must end.

    Returns:
        ``inputs_embeds`` ``(B, N, D)`` and the inputs, ``(B, N)`` each; N is the most tokens that an example has.
    """
    there = torch.cat([soft_mask.to(inputs["attention_mask"]), inputs["attention_mask"]], 1)
    most = int(there.sum(1).max())
    order = there.argsort(dim=1, descending=not left, stable=True)
    order = order[:, -most:] if left else order[:, :most]
    embeds = torch.cat([soft.to(words.dtype), words], 1)
    placed = {
        name: torch.cat([values.new_zeros(soft_mask.shape), values], 1).gather(1, order)
        for name, values in inputs.items()
        if name not in _OF_OTHERS and values.shape == words.shape[:2]
    }
    placed["attention_mask"] = there.gather(1, order)
    placed["inputs_embeds"] = embeds.gather(1, order.unsqueeze(-1).expand(-1, -1, embeds.shape[-1]))
    if POOL_TOKENS in inputs and _DECODER not in inputs:
        # Soft tokens that are missing moved behind, so that words moved by those that are there.
        moved = soft_mask.sum(1)[inputs[POOL_INPUTS]].unsqueeze(-1)
        pools = inputs[POOL_TOKENS]
        placed[POOL_TOKENS] = (pools + moved.to(pools)).where(pools >= 0, pools)
    return inputs | placed
