"""BitFit: train the bias terms, and nothing else unless asked to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from peft_rag.errors import MethodError
from peft_rag.methods import Method
from peft_rag.methods.targets import linear_modules, original_modules, unwrapped
from peft_rag.tuner import Args, Tuner, TunerConfig, TunerLayer


@dataclass
class BitFitConfig(TunerConfig):
    """Options of BitFit."""

    type_name: ClassVar[str] = "BITFIT"

    norm_scales: bool = field(default=False, metadata={"help": "Train the scales of normalisation layers too."})
    missing_biases: bool = field(
        default=False,
        metadata={"help": "Give a bias to linear and normalisation layers that were built without one."},
    )


class BitFitLayer(TunerLayer):
    """A module with a bias or a normalisation scale, and what is added to either.

    y' = y + δ, and with norm scales y' = y + (y − b) ⊙ γ + δ where b is the wrapped module's bias (0 if none).

    Dims: y ``(…, d_out)``, δ and γ ``(d_out,)``, both zero at the start.
    """

    adapter_layer_names = ("bitfit_weights",)

    def build(self, config: BitFitConfig) -> nn.Module:
        """Make δ where there is (or shall be) a bias and γ where there is a scale to train.

        Raises:
            MethodError: the module has neither.
        """
        base = self.base_layer
        weights: dict[str, nn.Parameter] = {}
        if wants_bias(base, config):
            weights["bias"] = nn.Parameter(torch.zeros(_width(base)))
        if config.norm_scales and is_norm(base):
            weights["scale"] = nn.Parameter(torch.zeros(_width(base)))
        if not weights:
            raise MethodError(
                f"bitfit: {type(base).__name__} has no bias to train. Set missing_biases=True to add one to linear "
                "layers, norm_scales=True to train the scales of norms, or leave it out of target_modules."
            )
        return nn.ParameterDict(weights)

    def change_output(self, adapter: str, args: Args, output: Any) -> Any:
        """Add δ, and γ times what the scale had produced."""
        weights = self.weights[adapter]
        changed = output
        if "scale" in weights:
            bias = getattr(self.base_layer, "bias", None)
            changed = changed + (output if bias is None else output - bias) * weights["scale"]
        return changed + weights["bias"] if "bias" in weights else changed

    def merged_parameters(self, adapter: str) -> Mapping[str, Tensor]:
        """Return bias + δ, and the scale such that the norm alone gives y'."""
        weights, base = self.weights[adapter], self.base_layer
        merged: dict[str, Tensor] = {}
        if "bias" in weights:
            merged["bias"] = weights["bias"].detach() + (0 if base.bias is None else base.bias)
        if "scale" in weights:
            scale = weights["scale"].detach()
            offset = scale if _scales_from_one(base) else torch.zeros_like(scale)
            merged["weight"] = base.weight * (1 + scale) + offset
        return merged


class BitFitTuner(Tuner):
    """Wraps every module that has something BitFit trains."""

    prefix = "bitfit_"
    tuner_layer_cls = BitFitLayer


def is_norm(module: nn.Module) -> bool:
    """Tell whether a module is a normalisation layer: a leaf whose weight is one scale per feature."""
    weight = module._parameters.get("weight")
    return weight is not None and weight.ndim == 1 and not list(module.children())


def wants_bias(module: nn.Module, config: BitFitConfig) -> bool:
    """Tell whether a module has a bias to train, or a place for one that is asked for."""
    if "bias" not in module._parameters or not (isinstance(module, nn.Linear | Conv1D) or is_norm(module)):
        return False
    return module._parameters["bias"] is not None or config.missing_biases


def find_biases(backbone: PreTrainedModel, config: BitFitConfig) -> list[str]:
    """Name every module that has something to train as a target, output embeddings and poolers left out.

    Raises:
        MethodError: the architecture has nothing of the kind; the message says what there is instead.
    """
    output = unwrapped(backbone.get_output_embeddings())
    modules = {
        name: module
        for name, module in original_modules(backbone).items()
        if module is not output and "pooler" not in name.split(".")
    }
    found = {
        name
        for name, module in modules.items()
        if wants_bias(module, config) or (config.norm_scales and is_norm(module))
    }
    if not found:
        norms = sum(map(is_norm, modules.values()))
        raise MethodError(
            f"bitfit: {type(backbone).__name__} has no bias terms. It has {norms} norm scales and "
            f"{len(linear_modules(backbone))} linear layers without bias: set norm_scales=True to train the scales, "
            "missing_biases=True to give the linear layers biases, or both."
        )
    return sorted(found)


def _width(module: nn.Module) -> int:
    bias, weight = module._parameters.get("bias"), module._parameters["weight"]
    if bias is not None:
        return int(bias.shape[0])
    if weight is None:
        raise MethodError(f"bitfit: {type(module).__name__} has no weight to take its width from.")
    return int(weight.shape[0])


def _scales_from_one(norm: nn.Module) -> bool:
    """Tell whether a norm multiplies by 1 + weight, as Gemma's does, and not by weight.

    Decided by running it: with a weight of zero, such a norm still gives something.
    """
    weight = norm.weight.detach()
    probe = torch.linspace(-1, 1, weight.shape[0], device=weight.device, dtype=weight.dtype)[None]
    bias = norm._parameters.get("bias")
    zeros = {"weight": torch.zeros_like(weight)} | ({} if bias is None else {"bias": torch.zeros_like(bias)})
    return bool(functional_call(norm, zeros, (probe,)).abs().sum() > 0)


METHOD = Method(
    config_class=BitFitConfig,
    tuner_class=BitFitTuner,
    learning_rate=1e-3,
    search={"norm_scales": (False, True)},
    mergeable=True,
    find_targets=find_biases,
)
"""Trains the bias terms only: a few vectors per layer.

y' = y + δ for every bias; with norm_scales also y' = y + (y − b) ⊙ γ.

Dims: y ``(…, d_out)``, b, δ and γ ``(d_out,)``; δ and γ are zero at the start.

Source: Ben Zaken et al. 2021, arXiv:2106.10199.
"""
