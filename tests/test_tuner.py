"""The base class of tuners: replacing, switching, merging and types, for a layer of a few lines."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn

from peft_rag.errors import MethodError
from peft_rag.methods import Method, attach, quiet_peft, register
from peft_rag.testing import TINY_BACKBONES
from peft_rag.testing.methods import example_inputs
from peft_rag.tuner import Args, Tuner, TunerConfig, TunerLayer

BERT = TINY_BACKBONES["bert"]


@dataclass
class ShiftConfig(TunerConfig):
    type_name: ClassVar[str] = "TEST_SHIFT"


class ShiftLayer(TunerLayer):
    """y' = W (x + i) + b + o."""

    adapter_layer_names = ("shift_weights",)

    def build(self, config: Any) -> nn.Module:
        base = self.base_layer
        widths = {"i": base.in_features, "o": base.out_features}
        return nn.ParameterDict({name: nn.Parameter(torch.zeros(width)) for name, width in widths.items()})

    def change_input(self, adapter: str, args: Args) -> Args:
        return args[0] + self.weights[adapter]["i"], *args[1:]

    def change_output(self, adapter: str, args: Args, output: Any) -> Any:
        return output + self.weights[adapter]["o"]

    def merged_parameters(self, adapter: str) -> dict[str, Tensor]:
        weights, base = self.weights[adapter], self.base_layer
        return {"bias": base.bias + base.weight @ weights["i"] + weights["o"]}


class ShiftTuner(Tuner):
    prefix = "shift_"
    tuner_layer_cls = ShiftLayer
    target_module_mapping: ClassVar = {"bert": ["query", "value"]}


SHIFT = Method(config_class=ShiftConfig, tuner_class=ShiftTuner, target_modules={"bert": ["query", "value"]})


def randomise(model: nn.Module) -> None:
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.3)


def hidden(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(**example_inputs(BERT())).last_hidden_state


def test_change_of_input_and_output_are_as_defined() -> None:
    model, report = attach(BERT(), SHIFT)
    randomise(model)
    layer = model.get_base_model().get_submodule(report.matched[0])
    x, weights, base = torch.randn(5, 32), layer.weights["default"], layer.base_layer
    torch.testing.assert_close(layer(x), base(x + weights["i"]) + weights["o"])


def test_merging_and_unmerging_bring_back_the_very_same_parameters() -> None:
    model, report = attach(BERT(), SHIFT)
    randomise(model)
    model.eval()
    base = model.get_base_model().get_submodule(report.matched[0]).base_layer
    bias, before = base.bias, hidden(model)
    model.merge_adapter(safe_merge=True)
    assert base.bias is not bias
    torch.testing.assert_close(hidden(model), before, atol=1e-5, rtol=1e-5)
    model.unmerge_adapter()
    assert base.bias is bias
    assert torch.equal(hidden(model), before)


def test_merging_two_adapters_and_unmerging_restores_in_order() -> None:
    model, report = attach(BERT(), SHIFT)
    randomise(model)
    attach(model, SHIFT, adapter_name="second")
    randomise(model)
    layer = model.get_base_model().get_submodule(report.matched[0])
    bias = layer.base_layer.bias
    layer.merge(adapter_names=["default"])
    layer.merge_adapter = None
    with pytest.warns(UserWarning, match="Already following adapters were merged"):
        layer.merge(adapter_names=["default", "second"])
    assert layer.merged_adapters == ["default", "second"]
    layer.unmerge()
    assert layer.base_layer.bias is bias
    assert not layer.merged


def test_safe_merge_refuses_values_that_are_not_finite() -> None:
    model, _ = attach(BERT(), SHIFT)
    model.get_base_model().encoder.layer[0].attention.self.query.weights["default"]["o"].data.fill_(float("nan"))
    with pytest.raises(MethodError, match="'bias' would hold values not finite"):
        model.merge_adapter(safe_merge=True)


def test_disabling_a_merged_adapter_unmerges_it() -> None:
    model, _ = attach(BERT(), SHIFT)
    randomise(model)
    model.eval()
    model.merge_adapter()
    with model.disable_adapter():
        assert torch.equal(hidden(model), hidden(BERT()))


def test_unload_gives_back_the_backbone() -> None:
    backbone = BERT()
    names = [name for name, _ in backbone.named_modules()]
    model, _ = attach(backbone, SHIFT)
    assert [name for name, _ in model.unload().named_modules()] == names


def test_deleting_an_adapter_removes_its_weights() -> None:
    model, report = attach(BERT(), SHIFT)
    attach(model, SHIFT, adapter_name="second")
    with pytest.warns(UserWarning, match="was active which is now deleted"):
        model.delete_adapter("second")
    assert list(model.get_base_model().get_submodule(report.matched[0]).weights) == ["default"]
    assert model.active_adapters == ["default"]


def test_module_reachable_under_two_names_is_wrapped_under_both_and_unloaded_from_both() -> None:
    backbone = BERT()
    layer = backbone.encoder.layer
    layer[1].attention.self.query = layer[0].attention.self.query
    model, _ = attach(backbone, SHIFT)
    assert isinstance(layer[0].attention.self.query, ShiftLayer)
    assert layer[1].attention.self.query is layer[0].attention.self.query
    model.merge_and_unload()
    assert isinstance(layer[0].attention.self.query, nn.Linear)
    assert layer[1].attention.self.query is layer[0].attention.self.query


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", ["adapter", "bitfit", "full", SHIFT], ids=str)
def test_output_keeps_the_type_of_a_backbone_in_low_precision(method: str | Method, dtype: torch.dtype) -> None:
    model, _ = attach(BERT().to(dtype), method)
    randomise(model)
    output = model(**example_inputs(BERT())).last_hidden_state
    assert output.dtype == dtype
    output.float().pow(2).mean().backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_plain_peft_finds_the_targets_of_a_registered_tuner() -> None:
    register(SHIFT)
    with quiet_peft():
        model = get_peft_model(BERT(), ShiftConfig(task_type="FEATURE_EXTRACTION"))
    assert len(model.base_model.targeted_module_names) == 4


def test_tuner_without_merging_says_so_in_one_line() -> None:
    model, _ = attach(BERT(), "adapter")
    for merge in (model.merge_adapter, model.merge_and_unload):
        with pytest.raises(MethodError, match="AdapterTuner cannot be merged"):
            merge()


def test_several_adapters_are_saved_and_loaded_apart(tmp_path: Any) -> None:
    model, _ = attach(BERT(), "adapter")
    randomise(model)
    attach(model, "adapter", adapter_name="second")
    randomise(model)
    model.eval()
    outputs = {}
    for name in ("default", "second"):
        model.set_adapter(name)
        outputs[name] = hidden(model)
    model.save_pretrained(tmp_path, save_embedding_layers=False)
    with quiet_peft():
        loaded = PeftModel.from_pretrained(BERT(), tmp_path)
        loaded.load_adapter(tmp_path / "second", "other")
    assert torch.equal(hidden(loaded.eval()), outputs["default"])
    loaded.set_adapter("other")
    assert torch.equal(hidden(loaded), outputs["second"])


def test_gradient_checkpointing_gives_the_same_gradients() -> None:
    gradients = []
    for checkpointing in (False, True):
        model, _ = attach(BERT(), "adapter")
        randomise(model)
        if checkpointing:
            with quiet_peft():
                base = model.get_base_model()
                newer = getattr(base, "activation_checkpointing_enable", None)
                (newer or base.gradient_checkpointing_enable)({"use_reentrant": False})
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        model.train()
        model(**example_inputs(BERT())).last_hidden_state.pow(3).mean().backward()
        gradients.append([p.grad for p in model.parameters() if p.requires_grad])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, checkpointed)
