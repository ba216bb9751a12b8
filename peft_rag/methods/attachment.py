"""Attach a method to a backbone: all of it, or nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from peft import PeftConfig, PeftModel, TaskType, get_peft_model
from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
)

from peft_rag.errors import ConfigError, MethodError, PeftRagError
from peft_rag.methods.audit import audit_frozen, audit_unchanged, sampled
from peft_rag.methods.method import Method, register, resolve
from peft_rag.methods.noise import quiet_peft
from peft_rag.methods.options import _one_line, build_config
from peft_rag.methods.targets import choose_targets, original_modules

_RESERVED = "__base__"


@dataclass(frozen=True)
class AttachReport:
    """What attaching a method did.

    Attributes:
        method: the method's name.
        adapter_name: the adapter's name.
        matched: the modules that were wrapped, or how many virtual tokens were added.
        trainable_parameters: how many numbers are trained.
        total_parameters: how many numbers the backbone holds.
    """

    method: str
    adapter_name: str
    matched: tuple[str, ...]
    trainable_parameters: int
    total_parameters: int

    @classmethod
    def from_dict(cls, about: Mapping[str, Any], adapter_name: str) -> AttachReport:
        """Return what `to_dict` described, under the name that the adapter has now."""
        counts = (int(about["trainable_parameters"]), int(about["total_parameters"]))
        return cls(about["name"], adapter_name, tuple(about["matched"]), *counts)

    def to_dict(self) -> dict[str, Any]:
        """Return what an artefact remembers of it."""
        return {
            "name": self.method,
            "matched": list(self.matched),
            "trainable_parameters": self.trainable_parameters,
            "total_parameters": self.total_parameters,
        }

    @property
    def trainable_percent(self) -> float:
        """What is trained, in percent of the backbone."""
        return 100 * self.trainable_parameters / max(self.total_parameters, 1)

    def __str__(self) -> str:
        """Say it in one line."""
        if not self.matched:
            what = "no module changed"
        elif len(self.matched) == 1:
            what = self.matched[0]
        else:
            what = f"{len(self.matched)} modules ({self.matched[0]} … {self.matched[-1]})"
        return (
            f"{self.method} '{self.adapter_name}': {what}; trains {self.trainable_parameters:,} parameters, "
            f"{self.trainable_percent:.3g}% of the backbone's {self.total_parameters:,}"
        )


def attach(
    backbone: PreTrainedModel | PeftModel,
    method: str | Method,
    *,
    adapter_name: str = "default",
    last_layers: int | None = None,
    **options: Any,
) -> tuple[PeftModel, AttachReport]:
    """Put a method's trainable weights on a backbone and freeze the backbone; on any error, leave it as it was.

    Args:
        backbone: a transformers model without a task head, or a model that this function returned before, which gets
            another adapter of the same method. The new adapter is the active one.
        method: a name, or a `Method` that no entry point names yet.
        adapter_name: what the adapter is called.
        last_layers: wrap modules in the last so many transformer layers (of each stack) only.
        options: the method's own options; see `method_options`.

    Returns:
        The model, and what was done to it.

    Raises:
        UnknownMethodError: no such method is installed.
        ConfigError: an option or the adapter's name cannot be used.
        MethodError: the method cannot be attached to this backbone.
    """
    name = method if isinstance(method, str) else method.peft_type.lower().replace("_", "-")
    method = resolve(method) if isinstance(method, str) else method
    register(method)
    plain = backbone.get_base_model() if isinstance(backbone, PeftModel) else backbone
    config = build_config(method, name, options)
    config.task_type = task_type_of(plain)
    check_adapter_name(adapter_name, backbone, config.peft_type)
    before = sampled(backbone)
    with unchanged_on_error(backbone):
        matched = choose_targets(
            method, name, plain, config, by_user="target_modules" in options, last_layers=last_layers
        )
        if method.prepare is not None:
            method.prepare(plain, config, matched)
        model = _inject(backbone, config, adapter_name, name)
        if any(path.split(".").count(adapter_name) > 1 for path, _ in model.named_parameters()):
            raise ConfigError(f"adapter name '{adapter_name}' is also the name of a part of '{name}'. Choose another.")
        audit_unchanged(model, before)
        audit = audit_frozen(model)
    return model, AttachReport(
        method=name,
        adapter_name=adapter_name,
        matched=_matched(model, config, adapter_name),
        trainable_parameters=audit.trainable_parameters,
        total_parameters=audit.backbone_parameters,
    )


def task_type_of(backbone: PreTrainedModel) -> TaskType:
    """Say what peft calls the work a backbone does, from its class."""
    name = type(backbone).__name__
    if name in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES.values():
        return TaskType.SEQ_2_SEQ_LM
    if name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values():
        return TaskType.CAUSAL_LM
    return TaskType.FEATURE_EXTRACTION


@contextmanager
def unchanged_on_error(model: nn.Module) -> Iterator[None]:
    """Bring back a model's modules, parameters, attributes and gradient flags if the block fails."""
    flags = [(parameter, parameter.data, parameter.requires_grad) for parameter in model.parameters()]
    kept = [
        (
            module,
            dict(module.__dict__),
            [(v, v.copy()) for v in module.__dict__.values() if isinstance(v, (dict, list))],
        )
        for module in model.modules()
    ]
    try:
        yield
    except BaseException:
        for module, attributes, containers in kept:
            module.__dict__.clear()
            module.__dict__.update(attributes)
            for container, content in containers:
                container.clear()
                container.update(content) if isinstance(container, dict) else container.extend(content)
        for parameter, data, flag in flags:
            parameter.data = data
            parameter.requires_grad_(flag)
        raise


def _inject(backbone: PreTrainedModel | PeftModel, config: PeftConfig, adapter_name: str, name: str) -> PeftModel:
    try:
        if not isinstance(backbone, PeftModel):
            with quiet_peft():
                return get_peft_model(backbone, config, adapter_name=adapter_name)
        with quiet_peft():
            backbone.add_adapter(adapter_name, config)
        backbone.set_adapter(adapter_name)
        return backbone
    except PeftRagError:
        raise
    except Exception as error:
        kind = type(backbone.get_base_model() if isinstance(backbone, PeftModel) else backbone).__name__
        raise MethodError(f"method '{name}' cannot be attached to {kind}: {_one_line(error)}.") from error


def virtual_tokens(model: PeftModel) -> int:
    """Return how many virtual tokens the active adapter puts before every input."""
    config = model.active_peft_config
    return int(config.num_virtual_tokens) if config.is_prompt_learning else 0


def check_adapter_name(adapter_name: str, backbone: PreTrainedModel | PeftModel, peft_type: str) -> None:
    """Refuse names that peft would confuse with modules or weights when it saves and loads by name.

    Raises:
        ConfigError: with what is wrong with the name.
        MethodError: the backbone carries an adapter, but is not the model that holds it.
    """
    plain = backbone.get_base_model() if isinstance(backbone, PeftModel) else backbone
    prefix = PEFT_TYPE_TO_PREFIX_MAPPING.get(peft_type)
    if not isinstance(backbone, PeftModel) and any(isinstance(m, BaseTunerLayer) for m in plain.modules()):
        raise MethodError(
            f"this {type(plain).__name__} already carries an adapter. Pass the PeftModel that holds it, "
            "or a fresh backbone."
        )
    problem = ""
    if not adapter_name or "." in adapter_name or "/" in adapter_name or adapter_name == _RESERVED:
        problem = f"must be a word without '.' or '/', and not {_RESERVED}"
    elif isinstance(backbone, PeftModel) and adapter_name in backbone.peft_config:
        problem = f"is taken; adapters here: {', '.join(backbone.peft_config)}"
    elif prefix and adapter_name in prefix:
        problem = f"is part of '{prefix}', with which the names of this method's weights start"
    elif any(adapter_name in module.split(".") for module in original_modules(plain)):
        problem = "is the name of a module of the backbone"
    if problem:
        raise ConfigError(f"adapter name '{adapter_name}' {problem}. Choose another.")


def _matched(model: PeftModel, config: Any, adapter_name: str) -> tuple[str, ...]:
    if config.is_prompt_learning:
        return (f"{virtual_tokens(model)} virtual tokens",)
    modules = dict(model.get_base_model().named_modules())
    wrapped = [
        name
        for name, module in modules.items()
        if isinstance(module, BaseTunerLayer) and adapter_name in module._get_available_adapters()
    ]
    elsewhere = [name for name, module in modules.items() if type(module).__module__.startswith("peft.tuners.")]
    return tuple(wrapped or getattr(model.base_model, "targeted_module_names", []) or elsewhere)
