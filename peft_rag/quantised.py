"""Weights in 4 or 8 bits, through bitsandbytes."""

from __future__ import annotations

import importlib.util
from typing import Any

from peft_rag.errors import BackboneError


def quantisation(name: str, load_in: str, dtype: str) -> dict[str, Any]:
    """Return what `from_pretrained` takes to load the linear layers in 4 bits (NF4) or 8 (LLM.int8).

    Embeddings, norms and the output layer stay as they are. Layers are quantised as they are loaded, block by block,
    by plain rounding: loading again on the same kind of device with the same bitsandbytes gives the same numbers and so
    the same fingerprint. Another kind of device may round ties otherwise; the fingerprint then differs, rightly, as
    the weights do.

    Source: Dettmers et al. 2023, arXiv:2305.14314 (NF4); Dettmers et al. 2022, arXiv:2208.07339 (LLM.int8).

    Args:
        name: the backbone's, for errors.
        load_in: ``4bit`` or ``8bit``; empty for nothing.
        dtype: in which 4-bit layers compute.

    Raises:
        BackboneError: bitsandbytes is not installed.
    """
    if not load_in:
        return {}
    if importlib.util.find_spec("bitsandbytes") is None:
        raise BackboneError(
            f"backbone '{name}' cannot be loaded in {load_in}: bitsandbytes is not installed. "
            "Run: pip install 'peft-rag[quantized]', or leave load_in out."
        )
    import torch
    from transformers import BitsAndBytesConfig

    if load_in == "8bit":
        return {"quantization_config": BitsAndBytesConfig(load_in_8bit=True)}
    return {
        "quantization_config": BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=getattr(torch, dtype),
        )
    }
