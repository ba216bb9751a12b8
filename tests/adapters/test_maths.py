"""The methods' formulas against plain loops."""

from __future__ import annotations

import pytest
import torch
from peft_rag_adapters.adapter import AdapterConfig, AdapterLayer, Bottleneck
from peft_rag_adapters.bitfit import BitFitConfig, BitFitLayer
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from peft_rag.methods import attach
from peft_rag.testing import TINY_BACKBONES


def randomise(module: nn.Module) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(parameter.numel()))


def bottleneck_by_loops(x: Tensor, weights: Bottleneck, scaling: float) -> Tensor:
    """s · U relu(D x + d) + s · u, entry by entry; x is (n,)."""
    middle = []
    for row, bias in zip(weights.down.weight.tolist(), weights.down.bias.tolist(), strict=True):
        total = bias
        for weight, value in zip(row, x.tolist(), strict=True):
            total += weight * value
        middle.append(max(total, 0.0))
    result = []
    for row, bias in zip(weights.up.weight.tolist(), weights.up.bias.tolist(), strict=True):
        total = bias
        for weight, value in zip(row, middle, strict=True):
            total += weight * value
        result.append(scaling * total)
    return torch.tensor(result)


def layer_with(base: nn.Module, config: AdapterConfig | BitFitConfig) -> AdapterLayer | BitFitLayer:
    layer = AdapterLayer(base) if isinstance(config, AdapterConfig) else BitFitLayer(base)
    layer.add_adapter("default", config)
    layer.set_adapter(["default"])
    randomise(layer.weights)
    return layer


@pytest.mark.parametrize("variant", ["houlsby", "pfeiffer"])
@pytest.mark.parametrize("base", [nn.Linear(6, 4), Conv1D(4, 6)], ids=["linear", "conv1d"])
def test_adapter_after_a_projection_adds_a_bottleneck_of_its_output(base: nn.Module, variant: str) -> None:
    layer = layer_with(base, AdapterConfig(variant=variant, reduction_factor=2, scaling=0.5))
    x = torch.randn(3, 6)
    before, after = base(x), layer(x)
    for row in range(3):
        wanted = before[row] + bottleneck_by_loops(before[row], layer.weights["default"], 0.5)
        torch.testing.assert_close(after[row], wanted)


def test_parallel_adapter_adds_a_bottleneck_of_the_block_input() -> None:
    base = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4))
    layer = layer_with(base, AdapterConfig(variant="parallel", reduction_factor=2, scaling=2.0))
    x = torch.randn(3, 4)
    before, after = base(x), layer(x)
    for row in range(3):
        wanted = before[row] + bottleneck_by_loops(x[row], layer.weights["default"], 2.0)
        torch.testing.assert_close(after[row], wanted)


def test_parallel_adapter_on_bert_is_added_before_the_residual_norm() -> None:
    model, report = attach(TINY_BACKBONES["bert"](), "adapter", variant="parallel", scaling=0.5, reduction_factor=4)
    block = model.get_base_model().get_submodule(report.matched[0])
    randomise(block.weights)
    hidden, residual = torch.randn(1, 2, 64), torch.randn(1, 2, 32)
    found = block(hidden, residual)
    base = block.base_layer
    for position in range(2):
        x = residual[0, position]
        beside = bottleneck_by_loops(x, block.weights["default"], 0.5)
        wanted = base.LayerNorm(base.dense(hidden[0, position]) + beside + x)
        torch.testing.assert_close(found[0, position], wanted)


@pytest.mark.parametrize("width", [32, 5, 1])
def test_bottleneck_is_reduced_but_never_empty(width: int) -> None:
    assert Bottleneck(width, AdapterConfig(reduction_factor=16)).down.out_features == max(1, width // 16)


def test_bottleneck_starts_with_random_down_and_zero_up() -> None:
    weights = Bottleneck(32, AdapterConfig(reduction_factor=2))
    assert weights.down.weight.std() > 0
    assert not weights.up.weight.any()
    assert not weights(torch.randn(4, 32)).any()


@pytest.mark.parametrize("base", [nn.Linear(6, 4), Conv1D(4, 6)], ids=["linear", "conv1d"])
def test_bitfit_adds_a_vector_to_the_output(base: nn.Module) -> None:
    layer = layer_with(base, BitFitConfig())
    delta = layer.weights["default"]["bias"]
    x = torch.randn(3, 6)
    before, after = base(x), layer(x)
    for row in range(3):
        for feature in range(4):
            assert after[row, feature].item() == pytest.approx((before[row, feature] + delta[feature]).item())


def test_bitfit_norm_scale_acts_on_what_the_norm_had_scaled() -> None:
    base = nn.LayerNorm(4)
    randomise(base)
    layer = layer_with(base, BitFitConfig(norm_scales=True))
    delta, gamma = layer.weights["default"]["bias"], layer.weights["default"]["scale"]
    x = torch.randn(3, 4)
    after = layer(x)
    for row in range(3):
        mean = sum(x[row].tolist()) / 4
        variance = sum((value - mean) ** 2 for value in x[row].tolist()) / 4
        for feature in range(4):
            normal = (x[row, feature].item() - mean) / (variance + base.eps) ** 0.5
            scaled = normal * base.weight[feature].item() * (1 + gamma[feature].item())
            wanted = scaled + base.bias[feature].item() + delta[feature].item()
            assert after[row, feature].item() == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize("family", ["bert", "llama", "gemma", "gemma3", "t5"])
def test_bitfit_merges_norm_scales_whatever_the_norm(family: str) -> None:
    options = {"norm_scales": True, "missing_biases": True}
    model, report = attach(TINY_BACKBONES[family](), "bitfit", **options)
    base = model.get_base_model()
    checked = 0
    for name in report.matched:
        layer = base.get_submodule(name)
        if layer.base_layer.weight.ndim != 1:
            continue
        with torch.no_grad():
            for parameter in layer.weights.parameters():
                parameter.normal_(std=0.3)
        x = torch.randn(2, layer.base_layer.weight.shape[0])
        before = layer(x)
        layer.merge()
        torch.testing.assert_close(layer(x), before)
        layer.unmerge()
        assert torch.equal(layer(x), before)
        checked += 1
    assert checked


def test_bitfit_gradient_is_that_of_the_bias_itself() -> None:
    base = nn.Linear(6, 4)
    layer = layer_with(base, BitFitConfig())
    x, direction = torch.randn(3, 6), torch.randn(3, 4)
    (layer(x) * direction).sum().backward()
    delta = layer.weights["default"]["bias"]
    for feature in range(4):
        assert delta.grad[feature].item() == pytest.approx(sum(direction[:, feature].tolist()), abs=1e-5)
