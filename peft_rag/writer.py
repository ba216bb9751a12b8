"""What writes a text, and what it is given: transformers' ``generate`` on a backbone under any method.

Dims: B texts, I inputs, T tokens of an input, D of a token's embedding.
"""

from __future__ import annotations

from typing import Any

from peft import PeftType
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput

from peft_rag.encoder_states import bare, encoded, joined
from peft_rag.fusion.prompts import Prompt


def writer_of(backbone: nn.Module, prompt: Prompt, start: int | None) -> tuple[Any, dict[str, Any]]:
    """Return what writes from a prompt, and what its ``generate`` is given.

    An encoder-decoder that reads more than token ids is given its encoder's states, made once by the method as in
    training. Virtual tokens are among these then, so that what writes is the transformers model under the method.

    Args:
        backbone: under any method.
        prompt: what is written from.
        start: the token that an encoder-decoder's decoder starts with; None for a decoder.
    """
    inputs = dict(prompt.inputs)
    if start is None or prompt.encoder_rows is None:
        return backbone, inputs
    ids = inputs["input_ids"]
    states, mask = encoded(backbone, inputs, start)
    if prompt.encoder_rows is not None:
        ids, _ = joined(ids.unsqueeze(-1), inputs["attention_mask"], prompt.encoder_rows)
        ids = ids.squeeze(-1)
        states, mask = joined(states, mask, prompt.encoder_rows)
    given = {"input_ids": ids, "encoder_outputs": BaseModelOutput(states), "attention_mask": mask}
    return (bare(backbone) if _prepends(backbone) else backbone), given


def _prepends(backbone: nn.Module) -> bool:
    """Whether a method puts trained embeddings before the encoder's own, which ``generate`` must not do once more."""
    kind = getattr(getattr(backbone, "active_peft_config", None), "peft_type", None)
    return kind in (PeftType.PROMPT_TUNING, PeftType.P_TUNING)
