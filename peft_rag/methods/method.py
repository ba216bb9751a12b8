"""What a PEFT method is to peft-rag, and how its name becomes one that peft itself can save and load."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from peft import PeftConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import BaseTuner
from transformers import PreTrainedModel

from peft_rag import registry
from peft_rag.errors import BrokenPluginError


@dataclass(frozen=True)
class Method:
    """A PEFT strategy: what an entry point of the group ``peft_rag.methods`` names.

    Attributes:
        config_class: its options, as peft stores them in ``adapter_config.json``.
        tuner_class: its tuner; None where peft ships it.
        target_modules: which modules it wraps, by the backbone's ``config.model_type``; peft's own rules of naming.
        options: defaults that differ from the config's own.
        learning_rate: what to train it with unless the user says otherwise.
        search: values worth trying by option, the default first; a benchmark tries the method's size where it is empty.
        changes_output: why the output right after attaching is not the backbone's; empty when it is, bit for bit.
        mergeable: whether its weights can be folded into the backbone's.
        find_targets: names the modules to wrap where the architecture's name does not say enough; given the backbone
            and the config.
        prepare: a last word on the config, given the backbone, the config and the modules that will be wrapped;
            raises `MethodError` where the method cannot work.
        limits: which property of the conformance kit does not hold, and why.
    """

    config_class: type[PeftConfig]
    tuner_class: type[BaseTuner] | None = None
    target_modules: Mapping[str, Sequence[str] | str] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    learning_rate: float = 1e-3
    search: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    changes_output: str = ""
    mergeable: bool = False
    find_targets: Callable[[PreTrainedModel, Any], Sequence[str] | str] | None = None
    prepare: Callable[[PreTrainedModel, Any, Sequence[str]], None] | None = None
    limits: Mapping[str, str] = field(default_factory=dict)

    @property
    def peft_type(self) -> str:
        """The name under which peft knows it, as ``adapter_config.json`` has it."""
        known = next((key for key, value in PEFT_TYPE_TO_CONFIG_MAPPING.items() if value is self.config_class), None)
        value = known if known is not None else self.config_class().peft_type
        return str(getattr(value, "value", value))


def resolve(name: str) -> Method:
    """Find a method by name and make it known to peft, so that peft can save and load its adapters.

    Raises:
        UnknownMethodError: no such method is installed; the message suggests the nearest.
        BrokenPluginError: its plugin cannot be imported, names no `Method`, or claims a peft type that is taken.
    """
    method = registry.load(registry.METHODS, name)
    if not isinstance(method, Method):
        plugin = registry.describe(registry.METHODS, name)
        raise BrokenPluginError(
            f"PEFT method '{name}' of {plugin.distribution}: '{plugin.target}' is a {type(method).__name__}, not a "
            "peft_rag.methods.Method. Name a Method object in the entry point."
        )
    register(method)
    return method


def register(method: Method) -> None:
    """Enter a method in peft's mapping tables, once.

    Raises:
        BrokenPluginError: its peft type or the prefix of its weights belongs to another method.
    """
    if method.tuner_class is None:
        return
    peft_type, prefix = method.peft_type, method.tuner_class.prefix
    for table, value, what in (
        (PEFT_TYPE_TO_CONFIG_MAPPING, method.config_class, "config"),
        (PEFT_TYPE_TO_TUNER_MAPPING, method.tuner_class, "tuner"),
    ):
        holder = table.get(peft_type, value)
        if holder is not value:
            raise BrokenPluginError(
                f"peft type '{peft_type}' belongs to the {what} {holder.__module__}.{holder.__qualname__}, so "
                f"{value.__module__}.{value.__qualname__} cannot have it. Choose another peft type."
            )
    for other, taken in PEFT_TYPE_TO_PREFIX_MAPPING.items():
        if taken == prefix and other != peft_type:
            raise BrokenPluginError(
                f"the weights of '{peft_type}' start with '{prefix}' as those of '{other}' do. Choose another prefix."
            )
    PEFT_TYPE_TO_CONFIG_MAPPING[peft_type] = method.config_class
    PEFT_TYPE_TO_TUNER_MAPPING[peft_type] = method.tuner_class
    PEFT_TYPE_TO_PREFIX_MAPPING[peft_type] = prefix
