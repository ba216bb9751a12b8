"""What modules are called in the architectures that peft-rag has defaults for, by ``config.model_type``."""

from __future__ import annotations

from collections.abc import Mapping

BERT_LIKE = ("bert", "roberta", "xlm-roberta", "electra", "camembert", "deberta-v2", "mpnet")
LLAMA_LIKE = ("llama", "mistral", "gemma", "gemma2", "gemma3_text", "qwen2", "qwen3", "phi3", "olmo2")
T5_LIKE = ("t5", "mt5", "umt5")


def _same(names: tuple[str, ...], modules: list[str]) -> dict[str, list[str]]:
    return {name: list(modules) for name in names}


QUERY_VALUE: Mapping[str, list[str]] = {
    **_same(("bert", "roberta", "xlm-roberta", "electra", "camembert", "albert"), ["query", "value"]),
    **_same(LLAMA_LIKE, ["q_proj", "v_proj"]),
    **_same(T5_LIKE, ["q", "v"]),
    "bart": ["q_proj", "v_proj"],
    "mbart": ["q_proj", "v_proj"],
    "deberta-v2": ["query_proj", "value_proj"],
    "distilbert": ["q_lin", "v_lin"],
    "gpt2": ["c_attn"],
    "modernbert": ["Wqkv"],
    "mpnet": ["attn.q", "attn.v"],
    "phi3": ["qkv_proj"],
}
"""Query and value projections, or the one projection that holds them."""

ATTENTION_OUTPUT: Mapping[str, list[str]] = {
    **_same(BERT_LIKE, ["attention.output.dense"]),
    **_same(LLAMA_LIKE, ["self_attn.o_proj"]),
    **_same(T5_LIKE, ["SelfAttention.o", "EncDecAttention.o"]),
    "albert": ["attention.dense"],
    "bart": ["self_attn.out_proj", "encoder_attn.out_proj"],
    "mbart": ["self_attn.out_proj", "encoder_attn.out_proj"],
    "distilbert": ["attention.out_lin"],
    "gpt2": ["attn.c_proj"],
    "modernbert": ["attn.Wo"],
    "mpnet": ["attn.o"],
}
"""The last projection of each attention block, before the residual connection."""

FEED_FORWARD_OUTPUT: Mapping[str, str] = {
    **dict.fromkeys(BERT_LIKE, r".*layer\.\d+\.output\.dense"),
    **dict.fromkeys(LLAMA_LIKE, r".*\.mlp\.down_proj"),
    **dict.fromkeys(T5_LIKE, r".*\.DenseReluDense\.wo"),
    "albert": r".*\.ffn_output",
    "bart": r".*\.fc2",
    "mbart": r".*\.fc2",
    "distilbert": r".*\.ffn\.lin2",
    "gpt2": r".*\.mlp\.c_proj",
    "modernbert": r".*\.mlp\.Wo",
}
"""The last projection of each feed-forward block, before the residual connection; one expression each."""

FEED_FORWARD: Mapping[str, str] = {
    **dict.fromkeys(BERT_LIKE, r".*layer\.\d+\.output"),
    **dict.fromkeys(LLAMA_LIKE, r".*\.mlp"),
    **dict.fromkeys(T5_LIKE, r".*\.DenseReluDense"),
    "distilbert": r".*\.ffn",
    "gpt2": r".*\.mlp",
    "modernbert": r".*\.mlp",
}
"""The module that holds each feed-forward block; in BERT and its kin, the one that adds its residual connection."""
