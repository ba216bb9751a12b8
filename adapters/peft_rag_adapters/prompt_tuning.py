"""Prompt tuning: trained vectors before the embedded input."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from peft import PromptTuningConfig, PromptTuningInit
from transformers import PreTrainedModel

from peft_rag.methods import Method

_KNOWN_WIDTHS = {"hidden_size", "n_embd", "d_model"}


def read_sizes(backbone: PreTrainedModel, config: Any, matched: Sequence[str]) -> None:
    """Tell peft layers, width and heads where the backbone's config calls them by names that peft does not know.

    Such are DistilBERT and an encoder-decoder pair, whose own config has none of them but whose encoder's has.
    """
    if _KNOWN_WIDTHS & backbone.config.to_dict().keys():
        return
    sizes = getattr(backbone.config, "encoder", backbone.config)
    config.num_layers = config.num_layers or sizes.num_hidden_layers
    config.token_dim = config.token_dim or sizes.hidden_size
    config.num_attention_heads = config.num_attention_heads or sizes.num_attention_heads


def read_sizes_of_words(backbone: PreTrainedModel, config: Any, matched: Sequence[str]) -> None:
    """Make virtual tokens as wide as words, which ALBERT and ELECTRA embed in fewer dimensions than they compute in."""
    if config.token_dim is None:
        config.token_dim = backbone.get_input_embeddings().weight.shape[1]
    read_sizes(backbone, config, matched)


METHOD = Method(
    config_class=PromptTuningConfig,
    options={"num_virtual_tokens": 20, "prompt_tuning_init": PromptTuningInit.SAMPLE_VOCAB},
    learning_rate=3e-2,
    changes_output="every position attends to the virtual tokens, which begin as embeddings of random words",
    prepare=read_sizes_of_words,
)
"""Trained vectors before the embedded input; no module of the backbone is wrapped.

h = f([P; E(x)]): the backbone f reads n virtual tokens P, then the embedded input E(x).

Dims: P ``(n, d)``, E(x) ``(T, d)``. P begins as the embeddings of n random words of the vocabulary: random vectors of
unit variance, as peft has by default, are far larger than an encoder's word embeddings and drown the input.

Source: Lester et al. 2021, arXiv:2104.08691.
"""
