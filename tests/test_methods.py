"""What a method is, how it gets its options, and how it is attached or refused."""

from __future__ import annotations

from typing import Any, Literal

import pytest
import torch
from peft import LoraConfig, PeftModel
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft_rag_adapters.bitfit import BitFitConfig, BitFitTuner
from torch import nn
from transformers import PreTrainedModel

from peft_rag import registry
from peft_rag.errors import BrokenPluginError, ConfigError, MethodError, UnknownMethodError
from peft_rag.fingerprint import weights_fingerprint
from peft_rag.methods import (
    Method,
    attach,
    audit_frozen,
    backbone_tensors,
    disabled,
    method_options,
    quiet_peft,
    register,
    resolve,
    trainable_names,
)
from peft_rag.methods.attachment import task_type_of, unchanged_on_error
from peft_rag.methods.options import coerce, describe_type
from peft_rag.stacks import layer_stacks
from peft_rag.testing import TINY_BACKBONES
from peft_rag.testing.methods import example_inputs

BERT, GPT2, LLAMA, T5 = (TINY_BACKBONES[name] for name in ("bert", "gpt2", "llama", "t5"))


def state(model: nn.Module) -> tuple[Any, ...]:
    modules = [(name, id(module), sorted(module.__dict__)) for name, module in model.named_modules()]
    flags = [(name, id(p), p.requires_grad) for name, p in model.named_parameters()]
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]
    return modules, flags, hooks, weights_fingerprint(model.state_dict().items())


# Names


def test_resolve_enters_the_method_in_the_tables_of_peft_once() -> None:
    method = resolve("bitfit")
    assert PEFT_TYPE_TO_CONFIG_MAPPING["BITFIT"] is method.config_class
    assert resolve("bitfit") is method


def test_resolve_suggests_the_nearest_name() -> None:
    with pytest.raises(UnknownMethodError, match="Did you mean 'lora'"):
        resolve("lorra")


def test_resolve_refuses_an_entry_point_that_names_no_method(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "load", lambda group, name: LoraConfig)
    with pytest.raises(BrokenPluginError, match=r"is a type, not a peft_rag.methods.Method"):
        resolve("lora")


def test_register_refuses_a_peft_type_that_is_taken() -> None:
    resolve("bitfit")

    class Other(BitFitConfig):
        pass

    with pytest.raises(BrokenPluginError, match="'BITFIT' belongs to the config"):
        register(Method(config_class=Other, tuner_class=BitFitTuner))


def test_register_refuses_a_prefix_that_is_taken() -> None:
    class Other(BitFitConfig):
        type_name = "OTHER_FIT"

    class OtherTuner(BitFitTuner):
        prefix = "lora_"

    with pytest.raises(BrokenPluginError, match="start with 'lora_' as those of"):
        register(Method(config_class=Other, tuner_class=OtherTuner))


# Options


def test_method_options_have_types_help_and_the_defaults_of_the_method() -> None:
    options = {option.name: option for option in method_options(resolve("lora"))}
    assert options["r"].default == 8
    assert options["lora_alpha"].default == 16
    assert options["r"].type == "int"
    assert options["r"].help
    assert not {"peft_type", "task_type", "inference_mode", "base_model_name_or_path"} & options.keys()


@pytest.mark.parametrize("name", registry.names(registry.METHODS))
def test_method_options_of_every_method_can_be_listed(name: str) -> None:
    assert isinstance(method_options(resolve(name)), list)


@pytest.mark.parametrize(
    ("value", "hint", "wanted"),
    [
        ("8", int, 8),
        (8, float, 8.0),
        ("1e-3", float, 1e-3),
        ("true", bool, True),
        ("none", int | None, None),
        ("query,value", list[str] | str | None, ["query", "value"]),
        ("query", list[str] | str | None, ["query"]),
        ("all-linear", list[str] | str | None, "all-linear"),
        (r".*\.(q|v)", list[str] | str | None, r".*\.(q|v)"),
        (("a", "b"), list[str], ["a", "b"]),
        ("relu", str, "relu"),
        ("b", Literal["a", "b"], "b"),
        (True, bool | Literal["x"], True),
        ({"a": 1}, dict[str, int] | None, {"a": 1}),
    ],
)
def test_coerce_reads_text_and_values(value: Any, hint: Any, wanted: Any) -> None:
    found = coerce(value, hint)
    assert found == wanted
    assert type(found) is type(wanted)


@pytest.mark.parametrize(
    ("value", "hint"),
    [("x", int), (True, int), (1.5, int), ("c", Literal["a", "b"]), (1, str), ("maybe", bool), (1, list[str])],
)
def test_coerce_refuses_other_types(value: Any, hint: Any) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        coerce(value, hint)


def test_describe_type_reads_like_a_choice() -> None:
    assert describe_type(list[str] | str | None) == "list of str | str | none"


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("lora", {"rr": 4}, "no option 'rr'. Did you mean 'r'?"),
        ("lora", {"r": "many"}, r"option 'r' of method 'lora' takes int, not 'many' \(str\)"),
        ("lora", {"lora_alpha": 3.5}, "takes int"),
        ("adapter", {"variant": "housby"}, "'houlsby' | 'pfeiffer' | 'parallel'"),
        ("adapter", {"activation": "rely"}, "Did you mean 'relu'"),
        ("adapter", {"reduction_factor": 0}, "must be above 0"),
        ("head", {"r": 4}, "Options: none"),
    ],
)
def test_attach_refuses_wrong_options(method: str, options: dict[str, Any], message: str) -> None:
    backbone = BERT()
    before = state(backbone)
    with pytest.raises(ConfigError, match=message):
        attach(backbone, method, **options)
    assert state(backbone) == before


# Attaching


def test_attach_reports_what_matched() -> None:
    model, report = attach(BERT(), "lora", r=4)
    assert report.matched == tuple(
        f"encoder.layer.{layer}.attention.self.{name}" for layer in range(2) for name in ("query", "value")
    )
    assert report.trainable_parameters == 2 * 2 * (4 * 32 + 32 * 4)
    assert report.total_parameters == sum(p.numel() for p in BERT().parameters())
    assert report.trainable_percent == pytest.approx(100 * report.trainable_parameters / report.total_parameters)
    assert "lora 'default': 4 modules" in str(report)
    assert isinstance(model, PeftModel)


@pytest.mark.parametrize(
    ("family", "task_type"), [("bert", "FEATURE_EXTRACTION"), ("gpt2", "CAUSAL_LM"), ("t5", "SEQ_2_SEQ_LM")]
)
def test_task_type_follows_from_the_class_of_the_backbone(family: str, task_type: str) -> None:
    assert task_type_of(TINY_BACKBONES[family]()) == task_type


def test_attach_gives_gpt2_its_transposed_weights_without_a_warning() -> None:
    model, _ = attach(GPT2(), "lora")
    assert model.peft_config["default"].fan_in_fan_out


def test_attach_leaves_the_pooler_alone_unless_it_is_named() -> None:
    for method in ("bitfit", "full"):
        _, report = attach(BERT(), method)
        assert not [name for name in report.matched if "pooler" in name]
    _, report = attach(BERT(), "lora", target_modules=["pooler.dense"])
    assert report.matched == ("pooler.dense",)


def test_attach_names_the_linear_modules_of_an_unknown_architecture() -> None:
    backbone = BERT()
    backbone.config.model_type = "unheard-of"
    for method in ("lora", "adapter"):
        with pytest.raises(MethodError, match=r"'unheard-of'.*query, key, value, dense.*target_modules="):
            attach(backbone, method)
    _, report = attach(backbone, "lora", target_modules="query,key")
    assert len(report.matched) == 4


def test_attach_names_the_linear_modules_when_nothing_matches() -> None:
    with pytest.raises(MethodError, match=r"matches target_modules=\['nothing'\].*query, key, value"):
        attach(BERT(), "lora", target_modules=["nothing"])


@pytest.mark.parametrize("expression", [r".*layer\.1\..*query", "all-linear"])
def test_attach_takes_expressions(expression: str) -> None:
    _, report = attach(BERT(), "lora", target_modules=expression)
    assert report.matched


def test_attach_adds_an_adapter_to_a_model_and_makes_it_the_active_one() -> None:
    model, _ = attach(BERT(), "adapter")
    again, report = attach(model, "adapter", adapter_name="second")
    assert again is model
    assert model.active_adapters == ["second"]
    assert report.adapter_name == "second"
    assert all(".second." in name for name in trainable_names(model))


def test_attach_refuses_a_second_adapter_that_cannot_lie_beside_the_first() -> None:
    model, _ = attach(BERT(), "adapter", variant="parallel")
    before = state(model)
    with pytest.raises(MethodError, match="lies inside a module that another adapter wraps"):
        attach(model, "adapter", adapter_name="second", variant="houlsby")
    assert state(model) == before


def test_attach_refuses_another_method_beside_the_first_and_leaves_it_working() -> None:
    model, _ = attach(BERT(), "bitfit")
    before = state(model)
    with pytest.raises(MethodError, match="different peft types"):
        attach(model, "lora", adapter_name="second")
    assert state(model) == before
    attach(model, "bitfit", adapter_name="third")


def test_attach_refuses_a_backbone_that_already_carries_an_adapter() -> None:
    backbone = BERT()
    attach(backbone, "lora")
    with pytest.raises(MethodError, match="already carries an adapter"):
        attach(backbone, "lora")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a.b", "without"),
        ("__base__", "without"),
        ("", "without"),
        ("query", "name of a module"),
        ("lora", "is part of 'lora_'"),
    ],
)
def test_attach_refuses_adapter_names_that_peft_would_confuse(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        attach(BERT(), "lora", adapter_name=name)


def test_attach_refuses_an_adapter_name_that_is_part_of_the_method() -> None:
    with pytest.raises(ConfigError, match="name of a part of 'adapter'"):
        attach(BERT(), "adapter", adapter_name="down")


def test_attach_refuses_an_adapter_name_that_is_taken() -> None:
    model, _ = attach(BERT(), "lora")
    with pytest.raises(ConfigError, match="is taken; adapters here: default"):
        attach(model, "lora")


@pytest.mark.parametrize("method", ["lora", "adapter", "bitfit", "full", "ia3"])
def test_attach_leaves_backbone_untouched_when_it_fails_halfway(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = BERT()
    backbone.get_input_embeddings().weight.requires_grad_(False)
    before, inputs = state(backbone), example_inputs(backbone)
    output = backbone(**inputs).last_hidden_state
    calls = []

    def fail_on_third(self: Any, parent: Any, name: str, new: Any, old: Any) -> None:
        setattr(parent, name, new)
        calls.append(name)
        if len(calls) == 3:
            raise RuntimeError("out of memory")

    resolve(method)
    from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING

    monkeypatch.setattr(PEFT_TYPE_TO_TUNER_MAPPING[resolve(method).peft_type], "_replace_module", fail_on_third)
    with pytest.raises(MethodError, match=f"method '{method}' cannot be attached to BertModel: out of memory"):
        attach(backbone, method)
    assert len(calls) == 3
    assert state(backbone) == before
    assert torch.equal(backbone(**inputs).last_hidden_state, output)


def test_unchanged_on_error_keeps_hooks_removable() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    handle = model.register_forward_hook(lambda *_: None)

    def fail_after_changing() -> None:
        with unchanged_on_error(model):
            model.register_forward_hook(lambda *_: None)
            model.extra = 1
            raise KeyError

    with pytest.raises(KeyError):
        fail_after_changing()
    assert len(model._forward_hooks) == 1
    assert not hasattr(model, "extra")
    handle.remove()
    assert not model._forward_hooks


# The last layers


@pytest.mark.parametrize(("make", "count"), [(BERT, 2), (GPT2, 1), (LLAMA, 2), (T5, 6)])
def test_last_layers_keeps_the_end_of_every_stack(make: Any, count: int) -> None:
    _, report = attach(make(), "lora", last_layers=1)
    assert len(report.matched) == count
    assert all(".1." in name for name in report.matched)


@pytest.mark.parametrize("method", ["bitfit", "adapter", "full", "ia3", "ln-tuning"])
def test_last_layers_works_with_any_method_that_wraps_modules(method: str, tmp_path: Any) -> None:
    model, report = attach(BERT(), method, last_layers=1)
    assert report.matched
    assert all("layer.1." in name for name in report.matched)
    model.save_pretrained(tmp_path, save_embedding_layers=False)
    with quiet_peft():
        loaded = PeftModel.from_pretrained(BERT(), tmp_path)
    assert len(trainable_names(loaded)) == 0
    assert {n for n, _ in loaded.named_parameters()} == {n for n, _ in model.named_parameters()}


@pytest.mark.parametrize(("layers", "message"), [(3, "encoder.layer has 2. Choose 1 to 2"), (0, "Choose 1 to 2")])
def test_last_layers_out_of_range_is_refused(layers: int, message: str) -> None:
    with pytest.raises(MethodError, match=message):
        attach(BERT(), "lora", last_layers=layers)


@pytest.mark.parametrize("method", ["prompt-tuning", "head"])
def test_last_layers_is_refused_where_nothing_is_wrapped(method: str) -> None:
    with pytest.raises(MethodError, match="wraps no layers"):
        attach(BERT(), method, last_layers=1)


def test_layer_stacks_are_the_outermost() -> None:
    assert layer_stacks(T5()) == {"encoder.block": 2, "decoder.block": 2}


# Freezing


@pytest.mark.parametrize("method", ["lora", "adapter", "bitfit", "prompt-tuning", "full", "head"])
def test_nothing_of_the_backbone_is_trained(method: str) -> None:
    model, report = attach(BERT(), method)
    audit = audit_frozen(model)
    assert audit.trainable_parameters == report.trainable_parameters
    assert audit.backbone_parameters == sum(p.numel() for p in BERT().parameters())
    assert set(audit.trainable) == set(trainable_names(model))
    assert (report.trainable_parameters == 0) == (method == "head")


def test_audit_names_a_loose_parameter_of_the_backbone() -> None:
    model, _ = attach(BERT(), "lora")
    model.get_base_model().embeddings.LayerNorm.weight.requires_grad_(True)
    with pytest.raises(MethodError, match=r"1 parameters of the backbone would be trained.*LayerNorm.weight"):
        audit_frozen(model)


@pytest.mark.parametrize("method", ["lora", "adapter", "bitfit", "prompt-tuning", "full", "head", "vera"])
@pytest.mark.parametrize("make", [BERT, GPT2], ids=["bert", "gpt2"])
def test_backbone_tensors_are_those_without_an_adapter(method: str, make: Any) -> None:
    bare = weights_fingerprint(make().state_dict().items())
    model, _ = attach(make(), method)
    assert weights_fingerprint(backbone_tensors(model).items()) == bare


@pytest.mark.parametrize("method", ["prompt-tuning", "head", "lora"])
def test_disabled_gives_the_backbone_and_then_the_adapter_again(method: str) -> None:
    model, _ = attach(BERT(), method)
    model.eval()
    inputs = example_inputs(model.get_base_model())
    with torch.no_grad():
        before = model(**inputs).last_hidden_state
        with disabled(model):
            off = model(**inputs).last_hidden_state
        assert torch.equal(off, BERT()(**inputs).last_hidden_state)
        assert torch.equal(model(**inputs).last_hidden_state, before)


# Full fine-tuning


def test_full_keeps_tied_weights_tied_and_saves_them_once(tmp_path: Any) -> None:
    from safetensors.torch import load_file

    def tied() -> PreTrainedModel:
        backbone = T5()
        backbone.config.tie_word_embeddings = True
        backbone.lm_head.weight = backbone.shared.weight
        return backbone

    model, report = attach(tied(), "full")
    base = model.get_base_model()
    copies = [base.get_submodule(name).weights["default"].weight for name in ("shared", "lm_head")]
    assert copies[0] is copies[1]
    assert copies[0] is not base.shared.base_layer.weight
    assert report.trainable_parameters == sum(p.numel() for p in tied().parameters())
    model.save_pretrained(tmp_path, save_embedding_layers=False)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert sum(tensor.numel() for tensor in saved.values()) == report.trainable_parameters
    merged = model.merge_and_unload()
    assert merged.lm_head.weight is merged.shared.weight
