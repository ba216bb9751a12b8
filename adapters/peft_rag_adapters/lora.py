"""LoRA: low-rank updates of the query and value projections."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from peft import LoraConfig
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from peft_rag.errors import ConfigError
from peft_rag.methods import Method
from peft_rag.methods.targets import original_modules
from peft_rag_adapters.architectures import QUERY_VALUE

_SUBTRACTED = ("pissa", "olora", "corda", "loftq", "lora_ga")


def keep_backbone(config: LoraConfig, *_: Any) -> None:
    """Refuse options under which peft takes the start of B A out of W, so that without the adapter it is another model.

    Raises:
        ConfigError: the option, and its values that can be used.
    """
    start = config.init_lora_weights
    if isinstance(start, str) and start.startswith(_SUBTRACTED):
        raise ConfigError(
            f"init_lora_weights={start!r} changes the backbone's weights, which stay as they are here. "
            "Choose true (the default), gaussian, orthogonal or false."
        )
    if config.layer_replication:
        raise ConfigError("layer_replication builds another backbone; here it stays as it is. Leave it out.")


def prepare(backbone: PreTrainedModel, config: Any, matched: Sequence[str]) -> None:
    """Check the options, and tell peft which way round the weights lie: ``(in, out)`` in GPT-2's ``Conv1D``."""
    keep_backbone(config)
    modules = original_modules(backbone)
    config.fan_in_fan_out = any(isinstance(modules[name], Conv1D) for name in matched)


METHOD = Method(
    config_class=LoraConfig,
    target_modules=QUERY_VALUE,
    options={"r": 8, "lora_alpha": 16},
    learning_rate=2e-3,
    mergeable=True,
    prepare=prepare,
)
"""Low-rank updates of the query and value projections, mergeable into the backbone.

h = W x + (lora_alpha / r) · B A x

Dims: x ``(d_in,)``, W ``(d_out, d_in)``, A ``(r, d_in)`` random, B ``(d_out, r)`` zero at the start.

Source: Hu et al. 2021, arXiv:2106.09685.
"""
