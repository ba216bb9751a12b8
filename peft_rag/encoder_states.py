"""What the decoder of an encoder-decoder reads: the states of one encoder input, or of several after each other.

A method may put virtual tokens before every encoder input; their states are read like those of any other token.

Dims: B texts that are written, I inputs of the encoder, K of them a text at most, T tokens of an input, virtual ones
among them, D hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from peft_rag.errors import BackboneError

_STATES, _MASK, _PAST = "encoder_hidden_states", "encoder_attention_mask", "past_key_values"


def joined(states: Tensor, mask: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Put the states of each text's inputs after each other.

    Args:
        states: of the inputs, ``(I, T, D)``.
        mask: 1 for a token that is there, ``(I, T)``.
        rows: the inputs of each text, ``(B, K)``; -1 where it has fewer.

    Returns:
        states ``(B, K·T, D)`` and their mask ``(B, K·T)``, 0 for the tokens of inputs that a text does not have.
    """
    chosen = rows.clamp(min=0)
    there = mask[chosen] * (rows >= 0).unsqueeze(-1).to(mask.dtype)
    return states[chosen].flatten(1, 2), there.flatten(1)


@contextmanager
def read_together(backbone: nn.Module, rows: Tensor) -> Iterator[None]:
    """Within the block, the decoder reads at its row b the states of all encoder inputs that row b of ``rows`` names.

    Args:
        backbone: an encoder-decoder, under any method; it is given I encoder inputs and B decoder inputs.
        rows: ``(B, K)``, see `joined`.

    Raises:
        BackboneError: the decoder is not given the encoder's states by the names that transformers has for them.
    """

    def join(decoder: nn.Module, given: Any, named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        if named.get(_STATES) is None or named.get(_MASK) is None:
            raise BackboneError(
                f"the decoder {type(decoder).__name__} is not given {_STATES} and {_MASK}, so that several passages "
                "cannot be read together. Choose another fusion for this architecture."
            )
        states, mask = joined(named[_STATES], named[_MASK], rows)
        if named.get(_PAST) is not None:  # a trained prefix, the same for every row
            named[_PAST].batch_select_indices(torch.arange(len(rows), device=rows.device))
        return given, {**named, _STATES: states, _MASK: mask}

    handle = bare(backbone).get_decoder().register_forward_pre_hook(join, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def encoded(backbone: nn.Module, inputs: dict[str, Tensor], start: int) -> tuple[Tensor, Tensor]:
    """Return the encoder's states ``(I, T, D)`` and their mask ``(I, T)``, virtual tokens of a method among them.

    Args:
        backbone: an encoder-decoder, under any method.
        inputs: what its encoder reads: ``input_ids`` or ``inputs_embeds``, and ``attention_mask``.
        start: the token that its decoder starts with.
    """
    heard: list[tuple[Tensor, Tensor]] = []

    def hear(encoder: nn.Module, given: Any, named: dict[str, Any], output: Any) -> None:
        heard.append((output[0], named["attention_mask"]))

    mask = inputs["attention_mask"]
    handle = bare(backbone).get_encoder().register_forward_hook(hear, with_kwargs=True)
    try:
        backbone(**inputs, decoder_input_ids=mask.new_full((len(mask), 1), start), use_cache=False)
    finally:
        handle.remove()
    return heard[0]


def bare(backbone: nn.Module) -> Any:
    """Return the transformers model under a method."""
    return backbone.get_base_model() if hasattr(backbone, "get_base_model") else backbone
