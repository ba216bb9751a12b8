"""The conformance kit finds what is broken, and says which promise it breaks."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from peft_rag.errors import ConformanceError, MethodError
from peft_rag.methods import Method
from peft_rag.testing import TINY_BACKBONES, check_method
from peft_rag.testing import methods as kit
from peft_rag.tuner import Args, Tuner, TunerConfig, TunerLayer

BERT = TINY_BACKBONES["bert"]
_numbers = itertools.count()


class Sound(TunerLayer):
    """y' = y (1 + l) + m, done right; the broken ones below each spoil one thing."""

    adapter_layer_names = ("spoilt_weights",)

    def build(self, config: Any) -> nn.Module:
        width = self.base_layer.out_features
        return nn.ParameterDict({name: nn.Parameter(torch.zeros(width)) for name in ("l", "m")})

    def change_output(self, adapter: str, args: Args, output: Tensor) -> Tensor:
        weights = self.weights[adapter]
        return output * (1 + weights["l"]) + weights["m"]

    def merged_parameters(self, adapter: str) -> dict[str, Tensor]:
        scale, base = 1 + self.weights[adapter]["l"].detach(), self.base_layer
        bias = base.bias * scale + self.weights[adapter]["m"].detach()
        return {"weight": base.weight * scale[:, None], "bias": bias}


class StartsOff(Sound):
    def build(self, config: Any) -> nn.Module:
        return nn.ParameterDict({name: nn.Parameter(torch.ones(self.base_layer.out_features)) for name in ("l", "m")})


class ChangesTheBackbone(Sound):
    def change_output(self, adapter: str, args: Args, output: Tensor) -> Tensor:
        if self.training:
            self.base_layer.weight.data.add_(0.01)
        return super().change_output(adapter, args, output)


class TrainsTheBackbone(Sound):
    def set_adapter(self, adapter_names: Any, inference_mode: bool = False) -> None:
        super().set_adapter(adapter_names, inference_mode)
        self.base_layer.requires_grad_(True)


class IdleWeight(Sound):
    def change_output(self, adapter: str, args: Args, output: Tensor) -> Tensor:
        return output * (1 + self.weights[adapter]["l"])


class ForgetsOnSaving(Sound):
    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__(base_layer)
        self.hidden_shift = 0.0

    def change_output(self, adapter: str, args: Args, output: Tensor) -> Tensor:
        if self.training:
            self.hidden_shift = 0.1
        return super().change_output(adapter, args, output) + self.hidden_shift


class StaysOn(Sound):
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self._disable_adapters = False
        return super().forward(*args, **kwargs)


class SharesWeights(Sound):
    def build(self, config: Any) -> nn.Module:
        return next(iter(self.weights.values()), None) or super().build(config)


class LooksAtTheBatch(Sound):
    def change_output(self, adapter: str, args: Args, output: Tensor) -> Tensor:
        weights = self.weights[adapter]
        return output * (1 + weights["l"] * output.mean()) + weights["m"]


class MixesUp(Sound):
    def _forward_mixed(self, args: Args, kwargs: dict[str, Any], adapter_names: Any) -> Any:
        return super()._forward_mixed(args, kwargs, sorted(adapter_names, reverse=True))


class ForgetsTheBias(Sound):
    def merged_parameters(self, adapter: str) -> dict[str, Tensor]:
        return {"weight": super().merged_parameters(adapter)["weight"]}


class HardlyCounts(Sound):
    def change_output(self, adapter: str, args: Args, output: Tensor) -> Tensor:
        weights = self.weights[adapter]
        return output * (1 + 1e-3 * weights["l"]) + 1e-3 * weights["m"]


class MergesWrongly(Sound):
    def merged_parameters(self, adapter: str) -> dict[str, Tensor]:
        return {"bias": super().merged_parameters(adapter)["bias"] + 0.01}


@dataclass
class _Config(TunerConfig):
    scale: float = field(default=1.0, metadata={"help": "unused"})


@dataclass
class _LossyConfig(_Config):
    def to_dict(self) -> dict[str, Any]:
        return {**super().to_dict(), "scale": self.scale * 2}


def method_with(layer: type[TunerLayer], config: type[_Config] = _Config, **fields: Any) -> Method:
    """A method with that layer, under a peft type and prefix of its own."""
    number = next(_numbers)
    own = type(config.__name__, (config,), {"type_name": f"SPOILT_{number}"})
    wrapped = type(layer.__name__, (layer,), {"adapter_layer_names": (f"spoilt{number}_weights",)})
    tuner = type("SpoiltTuner", (Tuner,), {"prefix": f"spoilt{number}_", "tuner_layer_cls": wrapped})
    settings = {"target_modules": {"bert": ["query", "value"]}, "mergeable": True, "learning_rate": 1e-2, **fields}
    return Method(config_class=dataclass(own), tuner_class=tuner, **settings)


def test_sound_method_passes_and_the_report_names_every_property() -> None:
    report = check_method(method_with(Sound), BERT)
    assert set(report.checked) == {
        kit.INITIAL,
        kit.FROZEN,
        kit.GRADIENT,
        kit.RELOAD,
        kit.JSON,
        kit.UNTOUCHED,
        kit.DISABLE,
        kit.SEVERAL,
        kit.ROWS,
        kit.MIXED,
        kit.MERGE,
        kit.UNMERGE,
    }
    assert not report.skipped
    assert "holds: merging" in str(report)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (StartsOff, rf"^{kit.INITIAL}: the output is not the backbone's .*changes_output"),
        (ChangesTheBackbone, rf"^{kit.FROZEN}: a training step changed a tensor of the backbone"),
        (TrainsTheBackbone, r"parameters of the backbone would be trained"),
        (IdleWeight, rf"^{kit.GRADIENT}: .*\.m' got none"),
        (ForgetsOnSaving, rf"^{kit.RELOAD}: the output after loading differs"),
        (StaysOn, rf"^{kit.DISABLE}: with the adapter disabled"),
        (SharesWeights, rf"^{kit.SEVERAL}: switching to 'default'"),
        (LooksAtTheBatch, rf"^{kit.ROWS}: the output of row 1 in a batch, against the row alone, differs"),
        (MixesUp, rf"^{kit.MIXED}: the output of a row of 'default' beside one of another differs"),
        (HardlyCounts, rf"^{kit.ROWS}: moving every trained tensor by about 0.05 moves the output by"),
        (MergesWrongly, rf"^{kit.UNMERGE}: the output merged differs"),
    ],
)
def test_broken_method_fails_with_the_promise_it_breaks(layer: type[TunerLayer], message: str) -> None:
    with pytest.raises((ConformanceError, MethodError), match=message):
        check_method(method_with(layer), BERT)


@pytest.mark.parametrize("learning_rate", [1e-2, 1e-5])
def test_wrong_merge_is_found_however_little_is_trained(learning_rate: float) -> None:
    with pytest.raises(ConformanceError, match=rf"^{kit.UNMERGE}: the output merged differs"):
        check_method(method_with(ForgetsTheBias, learning_rate=learning_rate), BERT)


def test_config_that_changes_on_the_way_through_json_fails() -> None:
    with pytest.raises(ConformanceError, match=rf"^{kit.JSON}: 'scale'"):
        check_method(method_with(Sound, _LossyConfig), BERT)


def test_method_that_leaves_traces_when_attaching_fails_is_found() -> None:
    class Impatient(Sound):
        def build(self, config: Any) -> nn.Module:
            self.base_layer.weight.data.add_(0.01)
            return super().build(config)

    with pytest.raises(ConformanceError, match=rf"^{kit.UNTOUCHED}: modules, weights"):
        check_method(method_with(Impatient), BERT)


def test_method_that_accepts_any_module_name_fails() -> None:
    class Accepting(Tuner):
        prefix = "accepting_"
        tuner_layer_cls = type("L", (Sound,), {"adapter_layer_names": ("accepting_weights",)})

    def accept(backbone: PreTrainedModel, config: Any, matched: Any) -> None:
        config.target_modules = ["query"]

    method = method_with(Sound, prepare=accept)
    with pytest.raises((ConformanceError, MethodError)):
        check_method(replace(method, tuner_class=Accepting, target_modules={}), BERT)


def test_reason_for_a_changed_output_is_accepted_and_reported() -> None:
    report = check_method(method_with(StartsOff, changes_output="it begins at one", mergeable=False), BERT)
    assert report.skipped[kit.INITIAL] == "it begins at one"
    assert kit.MERGE in report.skipped


def test_backbone_maker_that_is_not_seeded_is_named() -> None:
    calls = itertools.count()

    def unseeded() -> PreTrainedModel:
        backbone = BERT()
        with torch.no_grad():
            next(backbone.parameters()).add_(next(calls))
        return backbone

    with pytest.raises(ConformanceError, match="other weights at each call"):
        check_method("lora", unseeded)


@pytest.mark.parametrize("make", TINY_BACKBONES.values(), ids=TINY_BACKBONES)
def test_tiny_backbones_are_the_same_at_each_call(make: Callable[[], PreTrainedModel]) -> None:
    first, second = make().state_dict(), make().state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
