"""Which parameters are trained, which tensors are the backbone's, and whether the two keep apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils import AuxiliaryTrainingWrapper
from torch import Tensor, nn

from peft_rag.errors import MethodError

_SAMPLED = 1024


@dataclass(frozen=True)
class FreezeAudit:
    """What training can change.

    Attributes:
        trainable: names of the parameters that are trained.
        trainable_parameters: how many numbers they hold.
        backbone_parameters: how many numbers the frozen backbone holds.
    """

    trainable: tuple[str, ...]
    trainable_parameters: int
    backbone_parameters: int


def trainable_names(model: nn.Module) -> list[str]:
    """List the parameters that an optimiser would change."""
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def backbone_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return the backbone's own tensors under the names they have without an adapter.

    Two calls give equal `peft_rag.fingerprint.weights_fingerprint` if, and only if, the backbone did not change.
    """
    wrapped, adapters = _wrapped_and_adapters(model)
    return {
        _name_without(key, wrapped): tensor
        for key, tensor in model.state_dict().items()
        if not _is_under(key, adapters)
    }


def sampled(model: nn.Module) -> dict[nn.Parameter, Tensor]:
    """Copy some values of each of the backbone's parameters: all of small ones, 1,024 in even steps of the others.

    What costs next to nothing at any size shows whether a method, when attached, changed the backbone in place.
    """
    return {parameter: _sample(parameter) for parameter in backbone_parameters(model).values()}


def audit_unchanged(model: PeftModel, before: Mapping[nn.Parameter, Tensor]) -> None:
    """Verify that the backbone still is what `sampled` took ``before``.

    Raises:
        MethodError: it is not.
    """
    after = backbone_parameters(model)
    changed = [name for name, one in after.items() if one not in before or not torch.equal(_sample(one), before[one])]
    if changed or len(after) < len(before):
        first = f", first '{changed[0]}'" if changed else ""
        raise MethodError(
            f"the method changed {max(len(changed), 1)} tensors of the backbone{first}. It must stay as it is: load it "
            "again, and choose another start of the method's weights."
        )


def _sample(parameter: Tensor) -> Tensor:
    flat = parameter.detach().reshape(-1)
    return flat[:: max(len(flat) // _SAMPLED, 1)].clone()


def backbone_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters under a model that belong to its backbone and to no adapter, by their present names."""
    _, adapters = _wrapped_and_adapters(model)
    return {name: p for name, p in model.named_parameters() if not _is_under(name, adapters)}


def backbone_modules(model: nn.Module) -> list[nn.Module]:
    """Return the modules under a model that are no adapter's own."""
    _, adapters = _wrapped_and_adapters(model)
    return [module for name, module in model.named_modules() if not _is_under(name, adapters)]


def audit_frozen(model: PeftModel) -> FreezeAudit:
    """Say what is trained and verify that no parameter of the backbone is.

    Raises:
        MethodError: a backbone parameter would be trained.
    """
    backbone = backbone_parameters(model)
    loose = [name for name, parameter in backbone.items() if parameter.requires_grad]
    if loose:
        raise MethodError(
            f"{len(loose)} parameters of the backbone would be trained, first '{loose[0]}'. The backbone must stay "
            "frozen: call requires_grad_(False) on them, or train copies with the method 'full'."
        )
    trained = [(name, p.numel()) for name, p in model.named_parameters() if p.requires_grad]
    return FreezeAudit(
        trainable=tuple(name for name, _ in trained),
        trainable_parameters=sum(count for _, count in trained),
        backbone_parameters=sum(parameter.numel() for parameter in backbone.values()),
    )


def _wrapped_child(module: nn.Module) -> str | None:
    """Name the child under which a wrapper of peft keeps what it wraps; None if the module is no wrapper."""
    if isinstance(module, BaseTunerLayer):
        return "base_layer"
    if isinstance(module, AuxiliaryTrainingWrapper):
        return "original_module"
    if isinstance(module, PeftModel):
        return "base_model"
    if isinstance(module, BaseTuner) or (type(module).__module__.startswith("peft.") and "model" in module._modules):
        return "model"
    return None


def _wrapped_and_adapters(model: nn.Module) -> tuple[set[str], set[str]]:
    """Return the paths at which wrappers keep parts of the backbone, and those at which they keep their own weights."""
    wrapped: set[str] = set()
    adapters: set[str] = set()
    for name, module in model.named_modules():
        inner = _wrapped_child(module)
        if inner is None:
            continue
        path = f"{name}." if name else ""
        wrapped.add(path + inner)
        own = {*module._modules, *module._parameters, *module._buffers} - {inner}
        # peft keeps a second name of the word embeddings beside the backbone.
        adapters.update(path + child for child in own)
    return wrapped, adapters


def _is_under(name: str, paths: set[str]) -> bool:
    parts = name.split(".")
    return any(".".join(parts[:end]) in paths for end in range(1, len(parts) + 1))


def _name_without(name: str, wrapped: set[str]) -> str:
    parts = name.split(".")
    return ".".join(part for end, part in enumerate(parts, 1) if ".".join(parts[:end]) not in wrapped)
