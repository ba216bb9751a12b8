"""LoRA: low-rank updates of the query and value projections."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from peft import LoraConfig
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from peft_rag.methods import Method
from peft_rag.methods.targets import original_modules
from peft_rag_adapters.architectures import QUERY_VALUE


def transpose_where_needed(backbone: PreTrainedModel, config: Any, matched: Sequence[str]) -> None:
    """Tell peft which way round the weights lie: GPT-2's ``Conv1D`` keeps them as ``(in, out)``."""
    modules = original_modules(backbone)
    config.fan_in_fan_out = any(isinstance(modules[name], Conv1D) for name in matched)


METHOD = Method(
    config_class=LoraConfig,
    target_modules=QUERY_VALUE,
    options={"r": 8, "lora_alpha": 16},
    learning_rate=2e-3,
    mergeable=True,
    prepare=transpose_where_needed,
)
"""Low-rank updates of the query and value projections, mergeable into the backbone.

h = W x + (lora_alpha / r) · B A x

Dims: x ``(d_in,)``, W ``(d_out, d_in)``, A ``(r, d_in)`` random, B ``(d_out, r)`` zero at the start.

Source: Hu et al. 2021, arXiv:2106.09685.
"""
