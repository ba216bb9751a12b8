"""A batch whose rows have different adapters gives each row what its adapter alone would."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor

from peft_rag.errors import MethodError
from peft_rag.methods import attach, disabled
from peft_rag.testing import TINY_BACKBONES
from peft_rag.testing.methods import example_inputs

METHODS: list[tuple[str, dict[str, Any]]] = [
    ("lora", {}),
    ("bitfit", {"norm_scales": True, "missing_biases": True}),
    ("adapter", {"variant": "houlsby"}),
    ("adapter", {"variant": "pfeiffer"}),
    ("adapter", {"variant": "parallel"}),
]
NAMES = ["first", "__base__", "second", "first", "__base__", "second", "second"]


def two_adapters(family: str, method: str, options: dict[str, Any]) -> PeftModel:
    model, _ = attach(TINY_BACKBONES[family](), method, adapter_name="first", **options)
    model, _ = attach(model, method, adapter_name="second", **options)
    torch.manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".first" in name or ".second" in name:
                parameter.normal_(std=0.2)
    return model.eval()


def batch_of(model: PeftModel, rows: int) -> dict[str, Tensor]:
    small = example_inputs(model.get_base_model())
    generator = torch.Generator().manual_seed(5)
    return {
        name: torch.ones(rows, value.shape[1], dtype=torch.long)
        if name == "attention_mask"
        else torch.randint(3, 40, (rows, value.shape[1]), generator=generator)
        for name, value in small.items()
    }


def hidden(model: Any, inputs: dict[str, Tensor], **more: Any) -> Tensor:
    output = model(**inputs, **more)
    return output.logits if "logits" in output else output.last_hidden_state


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama", "t5"])
@pytest.mark.parametrize(("method", "options"), METHODS, ids=lambda value: str(value))
def test_mixed_batch_equals_rows_run_one_by_one(family: str, method: str, options: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    model = two_adapters(family, method, options)
    inputs = batch_of(model, len(NAMES))
    with torch.no_grad():
        mixed = hidden(model, inputs, adapter_names=NAMES)
        for row, name in enumerate(NAMES):
            one = {key: value[row : row + 1] for key, value in inputs.items()}
            if name == "__base__":
                with disabled(model):
                    alone = hidden(model, one)
            else:
                model.set_adapter(name)
                alone = hidden(model, one)
            torch.testing.assert_close(mixed[row], alone[0], atol=1e-5, rtol=1e-5)


def test_mixed_batch_runs_the_wrapped_module_once() -> None:
    model = two_adapters("bert", "bitfit", {})
    calls = []
    query = model.get_base_model().encoder.layer[0].attention.self.query.base_layer
    query.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        model(**batch_of(model, len(NAMES)), adapter_names=NAMES)
    assert len(calls) == 1


def test_mixed_batch_leaves_no_hooks_even_after_an_error() -> None:
    model = two_adapters("bert", "bitfit", {})
    inputs = batch_of(model, 3)
    before = [len(module._forward_pre_hooks) for module in model.modules()]
    with pytest.raises(MethodError, match="one adapter for each row"):
        model(**inputs, adapter_names=["first", "second"])
    assert [len(module._forward_pre_hooks) for module in model.modules()] == before


@pytest.mark.parametrize(("names", "message"), [(["third"] * 2, "unknown 'third'"), ("first", "one name, not a list")])
def test_mixed_batch_refuses_wrong_names(names: Any, message: str) -> None:
    model = two_adapters("bert", "adapter", {})
    with pytest.raises(MethodError, match=message):
        model(**batch_of(model, 2), adapter_names=names)


def test_mixed_batch_refuses_training_mode() -> None:
    model = two_adapters("bert", "adapter", {}).train()
    with pytest.raises(MethodError, match="evaluation mode"):
        model(**batch_of(model, 2), adapter_names=["first", "second"])


def test_mixed_batch_refuses_merged_adapters() -> None:
    model = two_adapters("bert", "bitfit", {})
    model.merge_adapter(["first"])
    with pytest.raises(MethodError, match="unmerge_adapter"):
        model(**batch_of(model, 2), adapter_names=["first", "second"])


def test_mixed_batch_is_refused_by_full() -> None:
    model = two_adapters("bert", "full", {})
    with pytest.raises(MethodError, match="not supported"):
        model(**batch_of(model, 2), adapter_names=["first", "second"])


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_beam_search_gives_each_row_its_adapter(family: str) -> None:
    model = two_adapters(family, "adapter", {})
    inputs = batch_of(model, 2)
    inputs.pop("decoder_input_ids", None)
    settings = {"num_beams": 3, "max_new_tokens": 4, "do_sample": False}
    mixed = model.generate(**inputs, adapter_names=["first", "second"], **settings)
    for row, name in enumerate(["first", "second"]):
        model.set_adapter(name)
        alone = model.generate(**{key: value[row : row + 1] for key, value in inputs.items()}, **settings)
        assert mixed[row, : alone.shape[1]].tolist() == alone[0].tolist()
