"""A small base for new PEFT methods: everything peft expects of a tuner, except what makes it that method.

A method is a config, a layer and a tuner. The layer says what an adapter's weights are and how they change what goes
into the wrapped module or comes out of it; creating, replacing, switching, disabling, merging, unloading and mixed
batches are done here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import torch
from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer, check_adapters_to_merge
from torch import Tensor, nn

from peft_rag.errors import MethodError

BASE = "__base__"
"""The adapter name that, in a mixed batch, means no adapter."""

Args = tuple[Any, ...]


@dataclass
class TunerConfig(PeftConfig):  # type: ignore[misc]
    """Which modules a method wraps; a method adds its own options as further fields.

    Attributes:
        type_name: what ``adapter_config.json`` calls the method; unique among all methods of peft and its users.
    """

    type_name: ClassVar[str] = ""

    target_modules: list[str] | str | None = field(
        default=None,
        metadata={
            "help": "Modules to wrap: names (their last parts suffice) or one regular expression over full names."
        },
    )
    exclude_modules: list[str] | str | None = field(
        default=None, metadata={"help": "Modules to leave out although target_modules names them."}
    )

    def __post_init__(self) -> None:
        """Set the peft type to this class's type_name."""
        super().__post_init__()
        self.peft_type = self.type_name


class TunerLayer(nn.Module, BaseTunerLayer):  # type: ignore[misc]
    """A module of the backbone and, by adapter name, the weights that change what it computes.

    A subclass names its container in ``adapter_layer_names`` (one name that starts with the tuner's prefix) and
    defines `build` and at least one of `change_input` and `change_output`; `merged_parameters` if it can be merged.

    Attributes:
        base_layer: the wrapped module, frozen.
    """

    adapter_layer_names: tuple[str, ...] = ()

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.merged_adapters: list[str] = []
        self._disable_adapters = False
        self._active_adapter: list[str] = []
        self._before_merge: list[dict[str, nn.Parameter | None]] = []
        setattr(self, self.adapter_layer_names[0], nn.ModuleDict())

    @property
    def weights(self) -> nn.ModuleDict:
        """The trained weights of each adapter on this layer."""
        container: nn.ModuleDict = getattr(self, self.adapter_layer_names[0])
        return container

    # What a method defines.

    def build(self, config: Any) -> nn.Module:
        """Make the weights of a new adapter, such that they change nothing yet.

        Args:
            config: the method's config.

        Returns:
            A module whose parameters are trained; ``nn.ParameterDict`` holds bare tensors.

        Raises:
            MethodError: the wrapped module is not of a kind this method can wrap.
        """
        raise NotImplementedError

    def change_input(self, adapter: str, args: Args) -> Args:
        """Return what the wrapped module is given instead of its positional arguments."""
        return args

    def change_output(self, adapter: str, args: Args, output: Any) -> Any:
        """Return what the layer gives instead of the wrapped module's output, which was computed from ``args``."""
        return output

    def merged_parameters(self, adapter: str) -> Mapping[str, Tensor]:
        """Return the wrapped module's parameters with the adapter folded in, by name; those left out stay.

        Raises:
            MethodError: the method cannot be merged.
        """
        raise MethodError(
            f"{type(self).__name__} cannot be merged: what it adds is no change of the wrapped module's parameters. "
            "Keep the adapter beside the backbone."
        )

    # What follows from it.

    def add_adapter(self, adapter: str, config: Any) -> None:
        """Build the weights of a new adapter on the wrapped module's device, in its floating type."""
        weights = self.build(config)
        like = next(self.base_layer.parameters(), None)
        if like is not None and not any(p.is_meta for p in [like, *weights.parameters()]):
            weights.to(like.device, like.dtype if like.is_floating_point() else None)
        self.weights[adapter] = weights

    def forward(self, *args: Any, adapter_names: Sequence[str] | None = None, **kwargs: Any) -> Any:
        """Run the wrapped module, changed by the active adapters or, row by row, by those named."""
        if self.disable_adapters:
            if self.merged:
                self.unmerge()
            return self.base_layer(*args, **kwargs)
        if adapter_names is not None:
            return self._forward_mixed(args, kwargs, adapter_names)
        if self.merged:
            return self.base_layer(*args, **kwargs)
        return self.compute([name for name in self.active_adapters if name in self.weights], args, kwargs)

    def compute(self, adapters: Sequence[str], args: Args, kwargs: dict[str, Any]) -> Any:
        """Run the wrapped module with these adapters, one after the other."""
        for adapter in adapters:
            args = _in_types_of(args, self.change_input(adapter, args))
        output = self.base_layer(*args, **kwargs)
        for adapter in adapters:
            output = _in_type_of(output, self.change_output(adapter, args, output))
        return output

    def _forward_mixed(self, args: Args, kwargs: dict[str, Any], adapter_names: Sequence[str]) -> Any:
        """Run the wrapped module once on the whole batch and change each adapter's rows of it."""
        if self.merged:
            raise MethodError(
                "adapter_names needs unmerged adapters, but some are merged. Call unmerge_adapter() first."
            )
        batch = len(adapter_names)
        rows = {
            adapter: torch.tensor([row for row, name in enumerate(adapter_names) if name == adapter])
            for adapter in dict.fromkeys(adapter_names)
            if adapter in self.weights
        }
        for adapter, index in rows.items():
            part = _take(args, index, batch)
            args = _put(args, part, self.change_input(adapter, part), index)
        output = self.base_layer(*args, **kwargs)
        for adapter, index in rows.items():
            part_args, before = _take(args, index, batch), _take((output,), index, batch)
            if before[0] is output:
                raise MethodError(
                    f"adapter_names names {batch} adapters, but {type(self.base_layer).__name__} gives no output with "
                    f"{batch} rows. Name one adapter for each row of the batch."
                )
            (output,) = _put((output,), before, (self.change_output(adapter, part_args, before[0]),), index)
        return output

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Fold adapters into the wrapped module's parameters; `unmerge` brings back the very same parameters.

        Raises:
            MethodError: the method cannot be merged, or safe_merge is set and a merged parameter is not finite.
        """
        for adapter in check_adapters_to_merge(self, adapter_names):
            if adapter not in self.weights:
                continue
            with torch.no_grad():
                merged = dict(self.merged_parameters(adapter))
            for name, value in merged.items():
                if safe_merge and not bool(torch.isfinite(value).all()):
                    raise MethodError(f"adapter '{adapter}' cannot be merged: '{name}' would hold values not finite.")
            self._before_merge.append({name: self.base_layer._parameters[name] for name in merged})
            for name, value in merged.items():
                old = self.base_layer._parameters[name]
                same_type = value if old is None else value.to(old.dtype)
                keep = isinstance(same_type, nn.Parameter)
                self.base_layer._parameters[name] = same_type if keep else nn.Parameter(same_type, requires_grad=False)
            self.merged_adapters.append(adapter)

    def unmerge(self) -> None:
        """Put back the parameters that were there before merging."""
        while self.merged_adapters:
            self.merged_adapters.pop()
            for name, parameter in self._before_merge.pop().items():
                merged = self.base_layer._parameters[name]
                if parameter is not None and merged is not None:
                    parameter.data = parameter.data.to(merged.device)
                self.base_layer._parameters[name] = parameter


class Tuner(BaseTuner):  # type: ignore[misc]
    """Wraps the target modules of a backbone in the method's layer.

    A subclass sets ``prefix`` (what the names of its weights start with, ending in ``_``) and ``tuner_layer_cls``.
    """

    prefix: str
    tuner_layer_cls: type[TunerLayer]
    target_module_mapping: Mapping[str, Sequence[str] | str] = {}
    mixed_batches: ClassVar[bool] = True

    def _create_and_replace(
        self,
        peft_config: Any,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        layer = target if isinstance(target, TunerLayer) else self.tuner_layer_cls(target)
        layer.add_adapter(adapter_name, peft_config)
        if layer is not target:
            self._replace_module(parent, target_name, layer, target)

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        """Put a module in another's place under every name by which the backbone reaches it."""
        new_module.train(child.training)
        for module in list(self.model.modules()):
            if module is new_module:
                continue
            for name, inner in module._modules.items():
                if inner is child:
                    module._modules[name] = new_module

    def _check_merge_allowed(self) -> None:
        super()._check_merge_allowed()
        if self.tuner_layer_cls.merged_parameters is TunerLayer.merged_parameters:
            raise MethodError(
                f"{type(self).__name__} cannot be merged into the backbone: what it adds is no change of existing "
                "parameters. Keep the adapter beside the backbone."
            )

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        container = cls.tuner_layer_cls.adapter_layer_names[0]
        return f".{container}.".join(
            part.removeprefix(f"{adapter_name}.") if place else part
            for place, part in enumerate(key.split(f".{container}."))
        )

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        """Hand ``adapter_names`` (one adapter per row, ``__base__`` for none) to every layer of this forward pass."""
        adapter_names = kwargs.pop("adapter_names", None)
        if adapter_names is None:
            yield
            return
        self._check_adapter_names(adapter_names)
        beams = kwargs.get("num_beams")
        repeated = [name for name in adapter_names for _ in range(beams if isinstance(beams, int) else 1)]
        # Beam search repeats the rows, but an encoder has run before that.
        encoder = self.model.get_encoder() if getattr(self.model.config, "is_encoder_decoder", False) else None
        in_encoder = {id(module) for module in encoder.modules()} if encoder is not None else set()
        handles = [
            layer.register_forward_pre_hook(
                partial(_name_adapters, list(adapter_names) if id(layer) in in_encoder else repeated),
                with_kwargs=True,
            )
            for layer in self.modules()
            if isinstance(layer, TunerLayer)
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _check_adapter_names(self, adapter_names: Sequence[str]) -> None:
        if isinstance(adapter_names, str) or not self.mixed_batches:
            reason = "is one name, not a list with one per row" if self.mixed_batches else "is not supported here"
            raise MethodError(
                f"adapter_names={adapter_names!r} {reason}. Use set_adapter to run a whole batch with one."
            )
        if self.training:
            raise MethodError("adapter_names works only in evaluation mode. Call model.eval() first.")
        unknown = sorted(set(adapter_names) - {BASE, *self.peft_config})
        if unknown:
            raise MethodError(
                f"adapter_names holds unknown {', '.join(map(repr, unknown))}. "
                f"Adapters here: {', '.join(sorted(self.peft_config))}; {BASE} means none."
            )


def _name_adapters(
    names: list[str], layer: nn.Module, args: Args, kwargs: dict[str, Any]
) -> tuple[Args, dict[str, Any]]:
    return args, {**kwargs, "adapter_names": names}


def _has_rows(value: Any, batch: int) -> bool:
    return isinstance(value, Tensor) and value.ndim > 0 and value.shape[0] == batch


def _take(values: Args, index: Tensor, batch: int) -> Args:
    """Return those rows of every tensor that has one row per example; anything else as it is."""
    return tuple(v[index.to(v.device)] if _has_rows(v, batch) else v for v in values)


def _put(values: Args, before: Args, after: Args, index: Tensor) -> Args:
    """Return the values with the rows that changed put in their place."""
    result = []
    for value, old, new in zip(values, before, after, strict=True):
        if new is not old:
            value = value.index_copy(0, index.to(value.device), new.to(value.dtype))
        result.append(value)
    return tuple(result)


def _in_type_of(like: Any, value: Any) -> Any:
    same = not isinstance(like, Tensor) or not isinstance(value, Tensor) or like.dtype == value.dtype
    return value if same else value.to(like.dtype)


def _in_types_of(like: Args, values: Args) -> Args:
    return values if values is like else tuple(map(_in_type_of, like, values))
