"""Which modules of a backbone a method wraps: named by the user, or by the method for this architecture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import BaseTunerLayer, check_target_module_exists
from peft.utils.constants import DUMMY_TARGET_MODULES
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from peft_rag.errors import MethodError
from peft_rag.methods.method import Method
from peft_rag.stacks import layer_stacks

_ALL_LINEAR = "all-linear"


def choose_targets(
    method: Method,
    name: str,
    backbone: PreTrainedModel,
    config: Any,
    *,
    by_user: bool,
    last_layers: int | None,
) -> list[str]:
    """Set ``config.target_modules`` for this backbone, if the method wraps modules at all.

    A pooler is left out unless the user names it: nothing here reads its output, so it would get no gradient.

    Returns:
        The modules that will be wrapped.

    Raises:
        MethodError: nothing is named for this architecture, nothing matches, or last_layers makes no sense.
    """
    if not wraps_modules(config):
        if last_layers is not None:
            raise MethodError(
                f"method '{name}' wraps no layers, so last_layers={last_layers} has no meaning. Leave it out."
            )
        return []
    if config.target_modules is None and method.find_targets is not None:
        config.target_modules = method.find_targets(backbone, config)
    elif config.target_modules is None:
        config.target_modules = default_targets(method, backbone)
    if config.target_modules is None:
        raise MethodError(
            f"method '{name}' names no modules for the architecture '{backbone.config.model_type}'. "
            f"{how_to_name(backbone)}"
        )
    return _narrow(backbone, config, keep_pooler=by_user, last_layers=last_layers)


def wraps_modules(config: Any) -> bool:
    """Tell whether a method with this config replaces modules of the backbone."""
    if config.is_prompt_learning or config.is_adaption_prompt:
        return False
    return bool(getattr(config, "target_modules", DUMMY_TARGET_MODULES) != DUMMY_TARGET_MODULES)


def default_targets(method: Method, backbone: PreTrainedModel) -> str | set[str] | None:
    """Return the modules a method wraps in this architecture; in an encoder-decoder pair, those of both halves."""
    halves = [getattr(backbone.config, half, None) for half in ("encoder", "decoder")]
    tuner = PEFT_TYPE_TO_TUNER_MAPPING.get(method.peft_type)
    ship = getattr(tuner, "target_module_mapping", None) or {}

    def of(model_type: str) -> Any:
        return method.target_modules.get(model_type, ship.get(model_type))

    found = of(backbone.config.model_type)
    if found is None and all(half is not None for half in halves):
        parts = [of(half.model_type) for half in halves if half is not None]
        if all(part is not None and not isinstance(part, str) for part in parts):
            found = {target for part in parts for target in part}
    return found if found is None or isinstance(found, str) else set(found)


def matching(backbone: nn.Module, config: Any) -> list[str]:
    """List the modules that a config's target_modules and exclude_modules pick, by peft's own rules."""
    return [name for name in original_modules(backbone) if name and check_target_module_exists(config, name)]


def original_modules(backbone: nn.Module) -> dict[str, nn.Module]:
    """Return the modules of a backbone by the names they have without adapters, those adapters wrap included."""
    inside: list[str] = []
    found: dict[str, nn.Module] = {}
    for name, module in backbone.named_modules():
        outer = next((outer for outer in inside if name.startswith(f"{outer}.")), None)
        if isinstance(module, BaseTunerLayer):
            inside.append(name)
        elif outer is None:
            found[name] = module
        elif f"{name}.".startswith(f"{outer}.base_layer."):
            found[outer + name.removeprefix(f"{outer}.base_layer")] = module
    return found


def unwrapped(module: nn.Module | None) -> nn.Module | None:
    """Return the module of the backbone that a module is, or wraps."""
    inner: nn.Module | None = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module
    return inner


def how_to_name(backbone: nn.Module) -> str:
    """Say which linear modules there are and how a user names them."""
    linear = list(linear_modules(backbone))
    short = list(dict.fromkeys(name.rpartition(".")[2] for name in linear))
    example = f"target_modules={short[:2]!r}"
    return (
        f"Name them: linear modules here are {', '.join(short)}; e.g. {example}, or one regular expression over full "
        f"names such as {linear[0] if linear else 'encoder.layer.0.dense'}."
    )


def linear_modules(backbone: nn.Module) -> dict[str, nn.Module]:
    """Return the linear maps of a backbone by name, output embeddings left out."""
    output = unwrapped(getattr(backbone, "get_output_embeddings", lambda: None)())
    return {
        name: module
        for name, module in original_modules(backbone).items()
        if isinstance(module, nn.Linear | Conv1D) and module is not output
    }


def is_in_last_layers(name: str, stacks: dict[str, int], last_layers: int) -> bool:
    """Tell whether a module lies in one of the last layers of its stack."""
    for stack, length in stacks.items():
        if name.startswith(f"{stack}."):
            return int(name[len(stack) + 1 :].split(".")[0]) >= length - last_layers
    return False


def _narrow(backbone: PreTrainedModel, config: Any, *, keep_pooler: bool, last_layers: int | None) -> list[str]:
    """Replace target_modules by full names where the pooler or earlier layers must stay out."""
    if config.target_modules == _ALL_LINEAR:
        config.target_modules = set(linear_modules(backbone))
    found = matching(backbone, config)
    if not found:
        raise MethodError(
            f"no module of {type(backbone).__name__} matches target_modules={_shown(config.target_modules)}. "
            f"{how_to_name(backbone)}"
        )
    reachable = {module for module, _ in backbone.named_modules()}
    hidden = [module for module in found if module not in reachable]
    if hidden:
        raise MethodError(
            f"'{hidden[0]}' lies inside a module that another adapter wraps whole. Give both adapters the same modules."
        )
    wanted = [module for module in found if keep_pooler or "pooler" not in module.split(".")]
    if last_layers is not None:
        stacks = layer_stacks(backbone)
        _check_last_layers(last_layers, stacks)
        wanted = [module for module in wanted if is_in_last_layers(module, stacks, last_layers)]
        if not wanted:
            raise MethodError(
                f"none of the {len(found)} modules to wrap lies in the last {last_layers} layers of a stack."
            )
    if wanted != found:
        config.target_modules = set(wanted)
    return wanted


def _check_last_layers(last_layers: int, stacks: dict[str, int]) -> None:
    if not stacks:
        raise MethodError(
            f"last_layers={last_layers}: this backbone has no list of layers to count. Name target_modules."
        )
    shortest = min(stacks.values())
    if not 1 <= last_layers <= shortest:
        shown = ", ".join(f"{name} has {length}" for name, length in stacks.items())
        raise MethodError(f"last_layers={last_layers} is out of range: {shown}. Choose 1 to {shortest}.")


def _shown(targets: str | Sequence[str]) -> str:
    return repr(targets) if isinstance(targets, str) else repr(sorted(targets))
