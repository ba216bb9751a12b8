"""Where the layers of a transformer are."""

from __future__ import annotations

from torch import nn


def layer_stacks(backbone: nn.Module) -> dict[str, int]:
    """Return the outermost lists of layers by name, with their lengths.

    A T5 has two: ``encoder.block`` and ``decoder.block``.
    """
    stacks: dict[str, int] = {}
    for name, module in backbone.named_modules():
        nested = any(name.startswith(f"{outer}.") for outer in stacks)
        if isinstance(module, nn.ModuleList) and len(module) and not nested:
            stacks[name] = len(module)
    return stacks
