"""What writes a text, and what it is given: transformers' ``generate`` on a backbone under any method.

Dims: B texts, I inputs, T tokens of an input, D of a token's embedding.
"""

from __future__ import annotations

from typing import Any

from peft import PeftType
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput

from peft_rag.encoder_states import bare, encoded, joined
from peft_rag.errors import ConfigError
from peft_rag.fusion.prompts import Prompt

_EMBEDS = "inputs_embeds"
_BEFORE_INPUTS = {PeftType.PROMPT_TUNING, PeftType.P_TUNING}
_IN_CACHE = {PeftType.PREFIX_TUNING, PeftType.CARTRIDGE}
"""Where methods put trained vectors."""


def writer_of(backbone: nn.Module, prompt: Prompt, start: int | None) -> tuple[Any, dict[str, Any]]:
    """Return what writes from a prompt, and what its ``generate`` is given.

    What is read beyond token ids is made once, by the method as in training: the states of an encoder, or the
    embeddings that a decoder reads. Virtual tokens are among these then, so that what writes is the transformers model
    under the method.

    Args:
        backbone: under any method.
        prompt: what is written from.
        start: the token that an encoder-decoder's decoder starts with; None for a decoder.

    Raises:
        ConfigError: the method's virtual tokens lie in a decoder's cache, where embeddings cannot follow them.
    """
    inputs = dict(prompt.inputs)
    if prompt.encoder_rows is None and _EMBEDS not in inputs:
        return backbone, inputs
    kind = getattr(getattr(backbone, "active_peft_config", None), "peft_type", None)
    writer = bare(backbone) if kind in _BEFORE_INPUTS else backbone
    ids = inputs.pop("input_ids") if _EMBEDS in inputs else inputs["input_ids"]
    if start is not None:
        states, mask = encoded(backbone, inputs, start)
        if prompt.encoder_rows is not None:
            ids, _ = joined(ids.unsqueeze(-1), inputs["attention_mask"], prompt.encoder_rows)
            ids = ids.squeeze(-1)
            states, mask = joined(states, mask, prompt.encoder_rows)
        return writer, {"input_ids": ids, "encoder_outputs": BaseModelOutput(states), "attention_mask": mask}
    check_goes_on(kind)
    embeds = _embedded(backbone, inputs) if kind in _BEFORE_INPUTS else inputs
    return writer, {**embeds, "input_ids": ids}


def no_virtual_tokens() -> ConfigError:
    """Say that virtual tokens cannot stand before inputs of different length that one text is written from."""
    return ConfigError(
        "a method with virtual tokens cannot write from passages of different length at once. Use --fusion concat, "
        "or a method like lora."
    )


def check_goes_on(peft_type: Any) -> None:
    """Raise `ConfigError` for a kind of method under which a decoder cannot go on from embeddings."""
    if peft_type in _IN_CACHE:
        name = PeftType(peft_type).value.lower().replace("_", "-")
        raise ConfigError(
            f"method '{name}' keeps its virtual tokens in the cache of a decoder, which cannot go on from soft tokens "
            "then. Use --method prompt-tuning or lora, or --fusion concat."
        )


def _embedded(backbone: nn.Module, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the embeddings and mask that a decoder reads, virtual tokens of a method among them."""
    heard: list[dict[str, Tensor]] = []

    def hear(model: nn.Module, given: Any, named: dict[str, Any]) -> None:
        heard.append({name: named[name] for name in (_EMBEDS, "attention_mask")})

    handle = bare(backbone).register_forward_pre_hook(hear, with_kwargs=True)
    try:
        backbone(**inputs, use_cache=False)
    finally:
        handle.remove()
    return heard[0]
