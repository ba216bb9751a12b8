"""Methods made of what peft ships: what they wrap, what does not fit, and what cannot be used here."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from peft import PeftConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.utils import TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from peft_rag.errors import MethodError
from peft_rag.methods import Method
from peft_rag.methods.targets import original_modules, unwrapped
from peft_rag_adapters.architectures import QUERY_VALUE
from peft_rag_adapters.bitfit import is_norm
from peft_rag_adapters.prompt_tuning import read_sizes

Sizes = list[tuple[int, int]]
Fit = Callable[[Any, Sizes], None]


def shipped(
    config_class: type[PeftConfig],
    *,
    conv1d: bool = False,
    fit: Fit | None = None,
    find_targets: Callable[[PreTrainedModel, Any], Sequence[str]] | None = None,
    mergeable: bool = True,
    **fields: Any,
) -> Method:
    """Make a method of one that peft ships and that wraps linear layers.

    It wraps the modules that peft wraps in an architecture, or query and value where peft has no default.

    Args:
        config_class: peft's config.
        conv1d: whether peft's layer can wrap GPT-2's ``Conv1D``.
        fit: lowers default sizes that do not fit; given the config and ``(in, out)`` of each module.
        find_targets: names the modules where a table cannot.
        mergeable: whether it can be folded into the backbone.
        fields: further fields of `Method`.
    """

    def prepare(backbone: PreTrainedModel, config: Any, matched: Sequence[str]) -> None:
        modules = [original_modules(backbone)[name] for name in matched]
        if any(isinstance(module, Conv1D) for module in modules):
            if not conv1d:
                raise MethodError(
                    f"peft's {config_class.__name__.removesuffix('Config')} wraps torch.nn.Linear only, and the "
                    f"projections of {type(backbone).__name__} are Conv1D. Choose another method, e.g. lora or adapter."
                )
            if hasattr(config, "fan_in_fan_out"):
                config.fan_in_fan_out = True
        if fit is not None:
            fit(config, [_size(module) for module in modules if module._parameters.get("weight") is not None])

    return Method(
        config_class=config_class,
        target_modules={**QUERY_VALUE, **peft_targets(config_class)},
        find_targets=find_targets,
        prepare=prepare,
        mergeable=mergeable,
        **fields,
    )


def peft_targets(config_class: type[PeftConfig]) -> Mapping[str, Sequence[str] | str]:
    """Return the modules that peft itself wraps with a method, by model type."""
    for peft_type, known in PEFT_TYPE_TO_CONFIG_MAPPING.items():
        if known is config_class:
            return dict(getattr(PEFT_TYPE_TO_TUNER_MAPPING[peft_type], "target_module_mapping", None) or {})
    return {}


def prompt(config_class: type[PeftConfig], **fields: Any) -> Method:
    """Make a method of one that peft ships and that wraps no module but adds virtual tokens."""
    return Method(config_class=config_class, prepare=fields.pop("prepare", read_sizes), **fields)


def unavailable(config_class: type[PeftConfig], reason: str, **options: Any) -> Method:
    """Make a method that cannot be attached here, and says why."""

    def refuse(backbone: PreTrainedModel, config: Any, *_: Any) -> Any:
        raise MethodError(f"{config_class.__name__.removesuffix('Config')} cannot be used here: {reason}")

    return Method(
        config_class=config_class,
        find_targets=refuse,
        prepare=refuse,
        options=options,
        limits={"attaching": reason},
    )


def lower(option: str, default: int, rule: Callable[[int, int, int], int]) -> Fit:
    """Make a fit that lowers an option, if it is still at its default, by a rule of (value, in, out)."""

    def fit(config: Any, sizes: Sizes) -> None:
        if getattr(config, option) == default:
            value = default
            for width_in, width_out in sizes:
                value = rule(value, width_in, width_out)
            setattr(config, option, value)

    return fit


def common_divisor(value: int, width_in: int, width_out: int) -> int:
    """Return the largest value that divides both widths."""
    return math.gcd(value, width_in, width_out)


def weights_at_most(value: int, width_in: int, width_out: int) -> int:
    """Return no more than there are weights."""
    return min(value, width_in * width_out)


def _size(module: nn.Module) -> tuple[int, int]:
    weight: Any = module.weight
    if weight.ndim == 1:
        return int(weight.shape[0]), int(weight.shape[0])
    first, second = weight.shape[:2]
    return (int(first), int(second)) if isinstance(module, Conv1D) else (int(second), int(first))


def norms(backbone: PreTrainedModel, config: Any) -> list[str]:
    """List the normalisation layers."""
    return [name for name, module in original_modules(backbone).items() if is_norm(module)]


def word_embeddings(backbone: PreTrainedModel, config: Any) -> list[str]:
    """Name the word embeddings.

    Raises:
        MethodError: no words were chosen.
    """
    if not config.token_indices:
        raise MethodError("TrainableTokens trains the embeddings of chosen words. Set token_indices to their ids.")
    words = unwrapped(backbone.get_input_embeddings())
    return [name for name, module in original_modules(backbone).items() if module is words]


def feed_forward(backbone: PreTrainedModel, config: Any, matched: Sequence[str]) -> None:
    """Tell IA3 which modules' inputs it scales; those of feed-forward outputs, where peft knows the architecture."""
    if config.feedforward_modules is None:
        known = TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING.get(backbone.config.model_type, [])
        config.feedforward_modules = {
            name for name in matched if any(name == part or name.endswith(f".{part}") for part in known)
        }
        config.target_modules = set(matched)
    if any(isinstance(module, Conv1D) for module in original_modules(backbone).values()):
        config.fan_in_fan_out = True


def layers_from_the_top(backbone: PreTrainedModel, config: Any, matched: Sequence[str]) -> None:
    """Give every layer a prompt unless the user says how many.

    Raises:
        MethodError: peft cannot rewrite this architecture's attention.
    """
    known = ("llama", "mistral", "gpt2")
    if backbone.config.model_type not in known:
        raise MethodError(
            f"AdaptionPrompt rewrites the attention of {', '.join(known)} only, not of '{backbone.config.model_type}'."
        )
    config.adapter_layers = config.adapter_layers or backbone.config.num_hidden_layers
