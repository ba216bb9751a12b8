"""Defaults for the architectures beyond the families of the conformance matrix."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as hf
from peft_rag_adapters.architectures import ATTENTION_OUTPUT, FEED_FORWARD, FEED_FORWARD_OUTPUT, QUERY_VALUE

from peft_rag.errors import MethodError
from peft_rag.methods import attach
from peft_rag.testing.methods import example_inputs

TOKENS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
ENCODER = {
    "vocab_size": 40,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
}
DECODER = {**ENCODER, **TOKENS, "num_key_value_heads": 1, "head_dim": 16}
HALVES = {
    "vocab_size": 40,
    "d_model": 32,
    "max_position_embeddings": 64,
    "decoder_start_token_id": 2,
    **TOKENS,
    **{f"{half}_layers": 2 for half in ("encoder", "decoder")},
    **{f"{half}_attention_heads": 2 for half in ("encoder", "decoder")},
    **{f"{half}_ffn_dim": 64 for half in ("encoder", "decoder")},
}
T5 = {"vocab_size": 40, "d_model": 32, "d_kv": 16, "num_layers": 2, "num_heads": 2, "d_ff": 64, **TOKENS}
SIZES: dict[str, dict[str, Any]] = {
    "albert": {**ENCODER, "embedding_size": 16},
    "bart": HALVES,
    "camembert": {**ENCODER, **TOKENS},
    "deberta-v2": ENCODER,
    "electra": {**ENCODER, "embedding_size": 16},
    "gemma2": DECODER,
    "mbart": HALVES,
    "mistral": DECODER,
    "modernbert": {**ENCODER, **TOKENS, "cls_token_id": 1, "sep_token_id": 2},
    "mpnet": {**ENCODER, **TOKENS},
    "mt5": {**T5, "decoder_start_token_id": 0},
    "olmo2": {key: value for key, value in DECODER.items() if key != "head_dim"},
    "phi3": {key: value for key, value in DECODER.items() if key != "head_dim"},
    "qwen2": DECODER,
    "qwen3": DECODER,
    "xlm-roberta": {**ENCODER, **TOKENS},
}
NO_FEED_FORWARD_MODULE = {"albert", "bart", "mbart"}


def backbone(kind: str) -> hf.PreTrainedModel:
    torch.manual_seed(7)
    config = hf.AutoConfig.for_model(kind, **SIZES[kind])
    if config.is_encoder_decoder:
        return hf.AutoModelForSeq2SeqLM.from_config(config).eval()
    if kind in ("gemma2", "mistral", "olmo2", "phi3", "qwen2", "qwen3"):
        return hf.AutoModelForCausalLM.from_config(config).eval()
    return hf.AutoModel.from_config(config).eval()


def output(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        return model(**inputs)[0]


@pytest.mark.parametrize("kind", SIZES)
@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("lora", {}),
        ("adapter", {"variant": "houlsby"}),
        ("adapter", {"variant": "pfeiffer"}),
        ("adapter", {"variant": "parallel"}),
        ("bitfit", {"norm_scales": True, "missing_biases": True}),
        ("full", {}),
    ],
    ids=str,
)
def test_defaults_attach_and_change_nothing_yet(kind: str, method: str, options: dict[str, Any]) -> None:
    plain = backbone(kind)
    inputs = example_inputs(plain)
    before = output(plain, inputs)
    if options.get("variant") == "parallel" and kind in NO_FEED_FORWARD_MODULE:
        with pytest.raises(MethodError, match="no defaults for variant 'parallel'"):
            attach(plain, method, **options)
        return
    model, report = attach(plain, method, **options)
    assert len(report.matched) >= (1 if kind == "albert" else 2)
    assert torch.equal(output(model.eval(), inputs), before)


@pytest.mark.parametrize("kind", SIZES)
def test_prompt_tuning_makes_virtual_tokens_as_wide_as_words(kind: str) -> None:
    plain = backbone(kind)
    width = plain.get_input_embeddings().weight.shape[1]
    inputs = example_inputs(plain)
    model, _ = attach(plain, "prompt-tuning", num_virtual_tokens=3)
    assert model.prompt_encoder["default"].embedding.weight.shape[1] == width
    assert output(model.eval(), inputs).isfinite().all()


def test_tables_agree_on_the_architectures_they_know() -> None:
    assert ATTENTION_OUTPUT.keys() >= FEED_FORWARD_OUTPUT.keys()
    assert FEED_FORWARD.keys() == FEED_FORWARD_OUTPUT.keys() - NO_FEED_FORWARD_MODULE
    assert QUERY_VALUE.keys() == FEED_FORWARD_OUTPUT.keys()
