"""Tiny backbones of the common families, with random weights that are the same at each call."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import transformers as hf
from transformers import PreTrainedModel

_VOCABULARY = 40
_TOKENS: dict[str, Any] = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_ENCODER: dict[str, Any] = {
    "vocab_size": _VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
}
_DECODER: dict[str, Any] = {**_ENCODER, **_TOKENS, "num_key_value_heads": 2, "head_dim": 16}


def _seeded(make: Callable[[], PreTrainedModel]) -> Callable[[], PreTrainedModel]:
    def build() -> PreTrainedModel:
        torch.manual_seed(7)
        model = make()
        # Random vectors in place of initial zeros and ones, so that biases and norm scales matter.
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
        return model.eval()

    return build


def _bert() -> PreTrainedModel:
    return hf.BertModel(hf.BertConfig(**_ENCODER))


def _roberta() -> PreTrainedModel:
    return hf.RobertaModel(hf.RobertaConfig(**_ENCODER, **_TOKENS))


def _distilbert() -> PreTrainedModel:
    return hf.DistilBertModel(hf.DistilBertConfig(vocab_size=_VOCABULARY, dim=32, n_layers=2, n_heads=2, hidden_dim=64))


def _modernbert() -> PreTrainedModel:
    ids = {"cls_token_id": 1, "sep_token_id": 2, **_TOKENS}
    return hf.ModernBertModel(hf.ModernBertConfig(**_ENCODER, **ids, global_attn_every_n_layers=2))


def _deberta() -> PreTrainedModel:
    return hf.DebertaV2Model(
        hf.DebertaV2Config(**_ENCODER, relative_attention=True, pos_att_type=["p2c", "c2p"], position_buckets=16)
    )


def _gpt2() -> PreTrainedModel:
    return hf.GPT2LMHeadModel(
        hf.GPT2Config(vocab_size=_VOCABULARY, n_embd=32, n_layer=2, n_head=2, n_positions=64, **_TOKENS)
    )


def _qwen() -> PreTrainedModel:
    return hf.Qwen2ForCausalLM(hf.Qwen2Config(**_DECODER))


def _llama() -> PreTrainedModel:
    return hf.LlamaForCausalLM(hf.LlamaConfig(**_DECODER))


def _gemma() -> PreTrainedModel:
    return hf.GemmaForCausalLM(hf.GemmaConfig(**_DECODER))


def _gemma3() -> PreTrainedModel:
    return hf.Gemma3ForCausalLM(hf.Gemma3TextConfig(**{**_DECODER, "num_key_value_heads": 1}))


def _t5() -> PreTrainedModel:
    return hf.T5ForConditionalGeneration(
        hf.T5Config(
            vocab_size=_VOCABULARY,
            d_model=32,
            d_kv=16,
            num_layers=2,
            num_heads=2,
            d_ff=64,
            decoder_start_token_id=0,
            pad_token_id=0,
            eos_token_id=2,
        )
    )


def _bart() -> PreTrainedModel:
    halves = {
        f"{half}_{name}": number
        for half in ("encoder", "decoder")
        for name, number in (("layers", 2), ("attention_heads", 2), ("ffn_dim", 64))
    }
    ids = {**_TOKENS, "decoder_start_token_id": 2, "forced_eos_token_id": 2}
    return hf.BartForConditionalGeneration(
        hf.BartConfig(vocab_size=_VOCABULARY, d_model=32, max_position_embeddings=64, **halves, **ids)
    )


def _encoder_decoder() -> PreTrainedModel:
    config = hf.EncoderDecoderConfig.from_encoder_decoder_configs(hf.BertConfig(**_ENCODER), hf.BertConfig(**_ENCODER))
    config.decoder_start_token_id = 1
    config.pad_token_id = 0
    return hf.EncoderDecoderModel(config=config)


TINY_BACKBONES: Mapping[str, Callable[[], PreTrainedModel]] = {
    make.__name__.removeprefix("_"): _seeded(make)
    for make in (
        _bert,
        _roberta,
        _distilbert,
        _modernbert,
        _deberta,
        _gpt2,
        _llama,
        _qwen,
        _gemma,
        _gemma3,
        _t5,
        _bart,
        _encoder_decoder,
    )
}
"""Makers of tiny backbones, by family: two layers, 32 wide, a vocabulary of 40."""
