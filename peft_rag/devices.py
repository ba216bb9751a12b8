"""Which device a model runs on: the one that was named, or the best there is."""

from __future__ import annotations

import torch

from peft_rag.errors import ConfigError


def accelerator_available() -> bool:
    """Return whether this machine has a device that torch computes on faster than on the processor."""
    return bool(torch.cuda.is_available() or torch.backends.mps.is_available())


def chosen_device(name: str | None = None) -> torch.device:
    """Return the device of that name, or without one the accelerator, or else the processor.

    Args:
        name: as torch has it, e.g. ``cuda``, ``cuda:1``, ``mps`` or ``cpu``.

    >>> chosen_device("cpu")
    device(type='cpu')

    Raises:
        ConfigError: torch has no such device, or not on this machine.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if accelerator_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError) as error:
        why = str(error).splitlines()[0].rstrip(" .")
        raise ConfigError(f"device '{name}' is not to be had here: {why}. Leave --device out for the best.") from error
    return device
