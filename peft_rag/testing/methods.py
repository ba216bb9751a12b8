"""The conformance kit of PEFT methods."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import PreTrainedModel

from peft_rag.errors import ConfigError, ConformanceError, MethodError
from peft_rag.fingerprint import weights_fingerprint
from peft_rag.methods import (
    AttachReport,
    Method,
    attach,
    audit_frozen,
    backbone_tensors,
    disabled,
    method_options,
    quiet_peft,
    resolve,
    trainable_names,
)
from peft_rag.testing.case import Case

INITIAL = "output at initialisation"
FROZEN = "frozen backbone"
GRADIENT = "every trained tensor receives a gradient"
RELOAD = "save and load"
JSON = "config survives JSON"
UNTOUCHED = "failed attach leaves the model untouched"
DISABLE = "disabling"
SEVERAL = "several adapters"
ROWS = "rows treated alike"
MIXED = "mixed batches"
MERGE = "merging"
UNMERGE = "unmerging"

_ROWS, _LENGTH, _TARGET_LENGTH = 2, 7, 5
_STEPS = 4
_TOLERANCE = 1e-5
_STIR = 0.05

MakeBackbone = Callable[[], PreTrainedModel]


@dataclass(frozen=True)
class MethodCheck:
    """What `check_method` found to hold.

    Attributes:
        attached: what attaching did.
        checked: the properties that hold.
        skipped: the properties not asked for, with the method's reason.
    """

    attached: AttachReport
    checked: tuple[str, ...]
    skipped: Mapping[str, str]

    def __str__(self) -> str:
        """Say it in a few lines."""
        lines = [str(self.attached), *(f"  holds: {name}" for name in self.checked)]
        return "\n".join([*lines, *(f"  not asked: {name} ({reason})" for name, reason in self.skipped.items())])


@dataclass
class _Case(Case):
    """One method on one backbone, and what has been found so far."""

    method: Method
    given: str | Method
    make_backbone: MakeBackbone
    options: Mapping[str, Any]

    def wants(self, name: str, reason: str = "") -> bool:
        """Tell whether a property is asked of the method; if not, note its reason."""
        reason = reason or self.method.limits.get(name, "")
        if reason:
            self.skipped[name] = reason
        return not reason

    def attach(self, backbone: PreTrainedModel | PeftModel, **more: Any) -> tuple[PeftModel, AttachReport]:
        """Attach the method with its options, from a fixed seed."""
        torch.manual_seed(0)
        return attach(backbone, self.given, **{**self.options, **more})


def check_method(method: str | Method, make_backbone: MakeBackbone, **options: Any) -> MethodCheck:
    """Check that a PEFT method keeps its promises on a backbone.

    The properties: the output at initialisation is the backbone's, bit for bit, unless the method says why not;
    training changes the trained tensors and no other; each of them receives a gradient; saving and loading into a fresh
    backbone reproduces the output bit for bit; the config survives JSON; a failed attach leaves the model as it was;
    disabling gives the backbone's output bit for bit; several adapters do not disturb each other; a row's output is
    what it is alone, also beside rows of another adapter where the tuner takes mixed batches; merging, where claimed,
    keeps the output. The last three hold within 1e-5, and are asked where the trained tensors are far enough from where
    they began for a mistake to show.

    Args:
        method: a name, or a `Method` that no entry point names yet.
        make_backbone: makes a small backbone, the same weights at each call.
        options: the method's options.

    Returns:
        What was checked.

    Raises:
        ConformanceError: a property does not hold; the message begins with its name.
        PeftRagError: the method cannot be attached to this backbone at all.
    """
    case = _Case(resolve(method) if isinstance(method, str) else method, method, make_backbone, options)
    backbone = make_backbone().eval()
    if _fingerprint(backbone) != _fingerprint(make_backbone()):
        raise ConformanceError(
            "make_backbone gives other weights at each call; seed it, so that outputs can be compared."
        )
    inputs = example_inputs(backbone)
    plain = _output(backbone, inputs)
    _check_untouched(case, backbone, inputs, plain)
    model, report = case.attach(backbone)
    model.eval()
    _check_initial(case, model, inputs, plain)
    _check_training(case, model, inputs)
    trained = _output(model, inputs)
    _check_disable(case, model, inputs, plain)
    _check_reload(case, model, inputs, trained)
    _check_several(case, model, inputs, trained)
    far = _stirred(model, inputs, plain)
    _check_rows(case, model, inputs, far)
    _check_mixed(case, model, inputs)
    _check_merge(case, model, inputs, far)
    return MethodCheck(report, tuple(case.checked), case.skipped)


def example_inputs(backbone: PreTrainedModel) -> dict[str, Tensor]:
    """Make a small batch for a backbone, its second row padded; encoder-decoders get decoder inputs too."""
    config = backbone.config.get_text_config()
    vocabulary = getattr(config, "vocab_size", None) or config.encoder.vocab_size
    generator = torch.Generator().manual_seed(1)
    mask = torch.ones(_ROWS, _LENGTH, dtype=torch.long)
    mask[1, -2:] = 0
    ids = torch.randint(3, vocabulary, (_ROWS, _LENGTH), generator=generator)
    inputs = {"input_ids": ids, "attention_mask": mask}
    if getattr(backbone.config, "is_encoder_decoder", False):
        inputs["decoder_input_ids"] = torch.randint(3, vocabulary, (_ROWS, _TARGET_LENGTH), generator=generator)
    return inputs


def _check_untouched(case: _Case, backbone: PreTrainedModel, inputs: dict[str, Tensor], plain: Tensor) -> None:
    with case.property(UNTOUCHED):
        before = _state(backbone)
        _expect_refusal(case, backbone, ConfigError, {"no_such_option_exists": 1})
        if any(option.name == "target_modules" and "list" in option.type for option in method_options(case.method)):
            _expect_refusal(case, backbone, MethodError, {"target_modules": ["no_such_module_exists"]})
        if _state(backbone) != before or not torch.equal(_output(backbone, inputs), plain):
            raise ConformanceError(f"{UNTOUCHED}: modules, weights, flags or outputs differ afterwards.")
        half_done = case.make_backbone()
        before = _state(half_done)
        if _fails_midway(case, half_done) and _state(half_done) != before:
            raise ConformanceError(f"{UNTOUCHED}: modules, weights or flags differ after a failure halfway.")


def _expect_refusal(case: _Case, backbone: PreTrainedModel, error: type[Exception], wrong: dict[str, Any]) -> None:
    try:
        case.attach(backbone, **wrong)
    except error:
        return
    raise ConformanceError(f"{UNTOUCHED}: attaching with {wrong} should raise {error.__name__}, but passed.")


def _fails_midway(case: _Case, backbone: PreTrainedModel) -> bool:
    """Attach with a tuner that fails after wrapping its first module; say whether there was a module to wrap."""
    tuner = PEFT_TYPE_TO_TUNER_MAPPING.get(case.method.peft_type)
    original = getattr(tuner, "_create_and_replace", None)
    if tuner is None or original is None:
        return False

    def fail(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        raise RuntimeError("made to fail by the conformance kit")

    own = "_create_and_replace" in tuner.__dict__
    tuner._create_and_replace = fail
    try:
        case.attach(backbone)
    except MethodError as error:
        return isinstance(error.__cause__, RuntimeError)
    finally:
        if own:
            tuner._create_and_replace = original
        else:
            del tuner._create_and_replace
    return False


def _check_initial(case: _Case, model: PeftModel, inputs: dict[str, Tensor], plain: Tensor) -> None:
    if not case.wants(INITIAL, case.method.changes_output):
        return
    with case.property(INITIAL):
        found = _output(model, inputs)
        if found.shape != plain.shape or not torch.equal(found, plain):
            far = (
                f"shape {tuple(found.shape)}"
                if found.shape != plain.shape
                else f"{(found - plain).abs().max():.2e} off"
            )
            raise ConformanceError(
                f"{INITIAL}: the output is not the backbone's ({far}). Initialise the weights so that they change "
                "nothing, or say in Method.changes_output why that cannot be."
            )


def _check_training(case: _Case, model: PeftModel, inputs: dict[str, Tensor]) -> None:
    with case.property(FROZEN):
        trained = set(audit_frozen(model).trainable)
        frozen = weights_fingerprint(backbone_tensors(model).items())
        silent, unmoved = train_steps(model, inputs, case.method.learning_rate)
        if weights_fingerprint(backbone_tensors(model).items()) != frozen:
            raise ConformanceError(f"{FROZEN}: a training step changed a tensor of the backbone.")
        if set(trainable_names(model)) != trained:
            raise ConformanceError(f"{FROZEN}: training changed which parameters are trained.")
        if unmoved:
            raise ConformanceError(f"{FROZEN}: {len(unmoved)} trained tensors never changed, first '{unmoved[0]}'.")
    if case.wants(GRADIENT):
        with case.property(GRADIENT):
            if silent:
                raise ConformanceError(f"{GRADIENT}: '{silent[0]}' got none in {_STEPS} steps ({len(silent)} such).")


def train_steps(model: PeftModel, inputs: dict[str, Tensor], learning_rate: float) -> tuple[list[str], list[str]]:
    """Take a few optimiser steps towards a random target.

    Returns:
        The trained tensors that never received a gradient, and those that received one but never changed.
    """
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    start = {name: p.detach().clone() for name, p in trained.items()}
    heard: set[str] = set()
    if not trained:
        return [], []
    optimiser = torch.optim.Adam(trained.values(), lr=learning_rate)
    model.train()
    for _ in range(_STEPS):
        output = _forward(model, inputs)
        target = torch.randn(output.shape, generator=torch.Generator().manual_seed(2))
        optimiser.zero_grad()
        nn.functional.mse_loss(output, target).backward()
        heard.update(name for name, p in trained.items() if p.grad is not None and bool(p.grad.ne(0).any()))
        optimiser.step()
    optimiser.zero_grad()
    model.eval()
    unmoved = [name for name, p in trained.items() if name in heard and torch.equal(p, start[name])]
    return [name for name in trained if name not in heard], unmoved


def _check_disable(case: _Case, model: PeftModel, inputs: dict[str, Tensor], plain: Tensor) -> None:
    if not case.wants(DISABLE):
        return
    with case.property(DISABLE):
        with disabled(model):
            off = _output(model, inputs)
        if off.shape != plain.shape or not torch.equal(off, plain):
            raise ConformanceError(f"{DISABLE}: with the adapter disabled the output is not the backbone's.")


def _check_reload(case: _Case, model: PeftModel, inputs: dict[str, Tensor], trained: Tensor) -> None:
    with tempfile.TemporaryDirectory() as folder:
        with case.property(JSON):
            model.save_pretrained(folder, save_embedding_layers=False)
            _check_config(model.peft_config["default"], Path(folder))
        with case.property(RELOAD):
            with quiet_peft():
                fresh = PeftModel.from_pretrained(case.make_backbone(), folder).eval()
            found = _output(fresh, inputs)
            if found.shape != trained.shape or not torch.equal(found, trained):
                raise ConformanceError(
                    f"{RELOAD}: the output after loading differs by up to {(found - trained).abs().max():.2e}."
                )


def _check_config(config: PeftConfig, folder: Path) -> None:
    stored = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    loaded = PeftConfig.from_pretrained(str(folder)).to_dict()
    for key, value in config.to_dict().items():
        if key in ("inference_mode", "base_model_name_or_path", "runtime_config", "auto_mapping"):
            continue
        if key not in stored or _plain(loaded[key]) != _plain(value):
            raise ConformanceError(
                f"{JSON}: '{key}' was {value!r} and is {loaded.get(key)!r} after saving and loading."
            )


def _check_several(case: _Case, model: PeftModel, inputs: dict[str, Tensor], trained: Tensor) -> None:
    if not case.wants(SEVERAL):
        return
    with case.property(SEVERAL):
        case.attach(model, adapter_name="second")
        model.eval()
        train_steps(model, inputs, case.method.learning_rate)
        second = _output(model, inputs)
        for name, wanted in (("default", trained), ("second", second), ("default", trained)):
            model.set_adapter(name)
            if not torch.equal(_output(model, inputs), wanted):
                raise ConformanceError(f"{SEVERAL}: switching to '{name}' does not give its output again.")


def _stirred(model: PeftModel, inputs: dict[str, Tensor], plain: Tensor) -> Tensor:
    """Move the trained tensors by far more than a few small steps do, and return the output."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(_STIR * torch.randn(parameter.shape, generator=generator).to(parameter.dtype))
    output = _output(model, inputs)
    moved = (output - plain).abs().max().item() if output.shape == plain.shape else math.inf
    least = 10 * _TOLERANCE * max(1.0, plain.abs().max().item())
    if trainable_names(model) and not moved > least:
        raise ConformanceError(
            f"{ROWS}: moving every trained tensor by about {_STIR} moves the output by {moved:.2e}, too little to tell "
            "right from wrong. Let the trained tensors count for more."
        )
    return output


def _check_rows(case: _Case, model: PeftModel, inputs: dict[str, Tensor], together: Tensor) -> None:
    if not case.wants(ROWS):
        return
    with case.property(ROWS):
        for row in range(_ROWS):
            alone = _output(model, {name: tensor[row : row + 1] for name, tensor in inputs.items()})
            _check_close(ROWS, f"of row {row + 1} in a batch, against the row alone,", together[row : row + 1], alone)


def _check_mixed(case: _Case, model: PeftModel, inputs: dict[str, Tensor]) -> None:
    if SEVERAL not in case.checked or not getattr(model.base_model, "mixed_batches", False):
        return
    with case.property(MIXED):
        names = ["default", "second"]
        with torch.no_grad():
            mixed = _forward(model, {**inputs, "adapter_names": names})
        for row, name in enumerate(names):
            model.set_adapter(name)
            _check_close(MIXED, f"of a row of '{name}' beside one of another", mixed[row], _output(model, inputs)[row])
        model.set_adapter("default")


def _check_merge(case: _Case, model: PeftModel, inputs: dict[str, Tensor], trained: Tensor) -> None:
    if not case.wants(MERGE, "" if case.method.mergeable else "the method does not claim it"):
        return
    if case.wants(UNMERGE):
        with case.property(UNMERGE):
            model.merge_adapter()
            _check_close(UNMERGE, "merged", _output(model, inputs), trained)
            model.unmerge_adapter()
            _check_close(UNMERGE, "unmerged again", _output(model, inputs), trained)
    with case.property(MERGE):
        bare = model.merge_and_unload()
        _check_close(MERGE, "merged and unloaded", _output(bare, inputs), trained)
        if any(isinstance(module, BaseTunerLayer) for module in bare.modules()):
            raise ConformanceError(f"{MERGE}: after merge_and_unload the backbone still holds layers of the method.")


def _check_close(what: str, how: str, found: Tensor, wanted: Tensor) -> None:
    off = (found - wanted).abs().max().item()
    if not off <= _TOLERANCE * max(1.0, wanted.abs().max().item()):
        raise ConformanceError(f"{what}: the output {how} differs by {off:.2e}, more than {_TOLERANCE:.0e}.")


def _forward(model: nn.Module, inputs: Mapping[str, Any]) -> Tensor:
    output = model(**inputs)
    result: Tensor = output.logits if "logits" in output else output.last_hidden_state
    return result


def _output(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        return _forward(model, inputs).clone()


def _fingerprint(model: nn.Module) -> str:
    return weights_fingerprint(model.state_dict().items())


def _state(model: nn.Module) -> tuple[Any, ...]:
    """All that a failed attach must not change."""
    modules = [(name, id(module), sorted(module.__dict__), module.training) for name, module in model.named_modules()]
    flags = [(name, id(p), p.requires_grad) for name, p in model.named_parameters()]
    return modules, flags, _fingerprint(model)


def _plain(value: Any) -> Any:
    if isinstance(value, (set, list, tuple)):
        items = [_plain(item) for item in value]
        return sorted(items, key=repr) if isinstance(value, set) or all(isinstance(i, str) for i in items) else items
    return {str(key): _plain(item) for key, item in value.items()} if isinstance(value, dict) else value
