"""The two ends of the scale: train every parameter of the backbone (as copies), or none."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from peft import PeftConfig
from peft.utils.constants import DUMMY_TARGET_MODULES
from torch import Tensor, nn
from transformers import PreTrainedModel

from peft_rag.errors import MethodError
from peft_rag.methods import Method
from peft_rag.methods.targets import original_modules
from peft_rag.tuner import Args, Tuner, TunerConfig, TunerLayer


@dataclass
class FullConfig(TunerConfig):
    """Options of full fine-tuning: which modules, by default all."""

    type_name: ClassVar[str] = "FULL_COPY"


class FullLayer(TunerLayer):
    """A module and, by adapter name, a copy of it that is trained and runs in its place."""

    adapter_layer_names = ("full_weights",)

    def build(self, config: FullConfig) -> nn.Module:
        """Copy the wrapped module."""
        return copy.deepcopy(self.base_layer)

    def compute(self, adapters: Sequence[str], args: Args, kwargs: dict[str, Any]) -> Any:
        """Run the copy.

        Raises:
            MethodError: several adapters are active at once; copies do not add up.
        """
        if len(adapters) > 1:
            raise MethodError(f"full: {', '.join(adapters)} cannot be active together. Choose one with set_adapter.")
        module = self.weights[adapters[0]] if adapters else self.base_layer
        return module(*args, **kwargs)

    def merged_parameters(self, adapter: str) -> Mapping[str, Tensor]:
        """Return the copy's own parameters, so that tied ones stay tied."""
        return dict(self.weights[adapter].named_parameters(recurse=False))


class FullTuner(Tuner):
    """Wraps every module that holds parameters; parameters tied in the backbone are tied in the copies."""

    prefix = "full_"
    tuner_layer_cls = FullLayer
    mixed_batches = False

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """Wrap the modules, then tie the copies as their originals are tied."""
        super().inject_adapter(model, adapter_name, *args, **kwargs)
        copies: dict[int, nn.Parameter] = {}
        for layer in model.modules():
            if not isinstance(layer, FullLayer) or adapter_name not in layer.weights:
                continue
            originals = layer._before_merge[0] if layer.merged else layer.base_layer._parameters
            for name, parameter in layer.weights[adapter_name].named_parameters(recurse=False):
                layer.weights[adapter_name]._parameters[name] = copies.setdefault(id(originals[name]), parameter)

    @classmethod
    def _get_adapter_state_dict(
        cls,
        model: nn.Module,
        config: PeftConfig,
        adapter_name: str,
        state_dict: dict[str, Tensor],
        *args: Any,
        **kwargs: Any,
    ) -> dict[str, Tensor]:
        """Keep the first of each group of tied tensors."""
        chosen = super()._get_adapter_state_dict(model, config, adapter_name, state_dict, *args, **kwargs)
        again = {alias for first, *rest in _tied(model) for alias in rest if first in chosen}
        return {key: value for key, value in chosen.items() if key not in again}

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: PeftConfig, adapter_name: str, state_dict: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Give every tied tensor the value of the one that was saved."""
        found = super()._remap_adapter_state_dict_for_load(model, config, adapter_name, state_dict)
        for first, *rest in _tied(model):
            if first in found:
                found.update(dict.fromkeys(rest, found[first]))
        return dict(found)

    def _check_tied_modules(self, model: nn.Module, peft_config: PeftConfig) -> None:
        """Nothing to warn of: copies of tied parameters are tied."""

    def _get_tied_target_modules(self, model: nn.Module) -> list[str]:
        return []

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        """Leave the copies in the backbone's type: they run in its place, on its inputs."""


@dataclass
class HeadConfig(PeftConfig):  # type: ignore[misc]
    """No options: nothing of the backbone is trained."""

    def __post_init__(self) -> None:
        """Set the peft type and the target that peft takes for none."""
        super().__post_init__()
        self.peft_type = "FROZEN_FEATURES"

    @property
    def target_modules(self) -> str:
        """Tell peft that no module is meant to match."""
        return str(DUMMY_TARGET_MODULES)


class HeadLayer(TunerLayer):
    """Never made: no module is wrapped."""

    adapter_layer_names = ("head_weights",)


class HeadTuner(Tuner):
    """Freezes the backbone and wraps nothing."""

    prefix = "head_"
    tuner_layer_cls = HeadLayer

    def _check_merge_allowed(self) -> None:
        """Nothing to fold in, so nothing is in the way."""


def every_module(backbone: PreTrainedModel, config: FullConfig) -> list[str]:
    """Name every module that holds parameters of its own as a target, poolers left out.

    Raises:
        MethodError: a module holds both parameters and modules, so that it cannot be copied alone.
    """
    holders = {
        name: module
        for name, module in original_modules(backbone).items()
        if any(p is not None for p in module._parameters.values()) and "pooler" not in name.split(".")
    }
    leaves = {name: module for name, module in holders.items() if name and not list(module.children())}
    copied = {id(parameter) for module in leaves.values() for parameter in module.parameters()}
    for name in holders.keys() - leaves.keys():
        if any(id(parameter) not in copied for parameter in holders[name].parameters(recurse=False)):
            raise MethodError(
                f"full: '{name or type(backbone).__name__}' of {type(backbone).__name__} holds both parameters and "
                "modules, which cannot be copied one by one. Name target_modules without it."
            )
    return sorted(leaves)


def _tied(model: nn.Module) -> list[list[str]]:
    """Group the names under which a model's state holds one and the same copied parameter."""
    groups: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if f".{FullLayer.adapter_layer_names[0]}." in name:
            groups.setdefault(id(parameter), []).append(name)
    return [names for names in groups.values() if len(names) > 1]


FULL = Method(
    config_class=FullConfig,
    tuner_class=FullTuner,
    learning_rate=5e-5,
    mergeable=True,
    find_targets=every_module,
)
"""Full fine-tuning: every parameter of the backbone is trained, as a copy, so the backbone itself stays as it was.

y = f(x; θ + Δ), every Δ trained and zero at the start; twice the memory of the backbone.

Source: the baseline that PEFT methods are measured against.
"""

HEAD = Method(config_class=HeadConfig, tuner_class=HeadTuner, learning_rate=1e-3, mergeable=True)
"""Frozen features: nothing of the backbone is trained, only the task's head.

y = f(x; θ).

Source: the baseline that PEFT methods are measured against (linear probing).
"""
