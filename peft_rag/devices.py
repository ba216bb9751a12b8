"""Which device models and encoders run on: the one that was named, or the best there is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

import torch

from peft_rag.errors import ConfigError

if TYPE_CHECKING:
    from accelerate import PartialState

_named: torch.device | None = None


def accelerator_available() -> bool:
    """Return whether this machine has a device that torch computes on faster than on the processor."""
    return bool(torch.cuda.is_available() or torch.backends.mps.is_available())


def chosen_device(name: str | None = None) -> torch.device:
    """Return the device of that name; without one what `computing_on` named, or the accelerator, or the processor.

    Args:
        name: as torch has it, e.g. ``cuda``, ``cuda:1``, ``mps`` or ``cpu``.

    >>> chosen_device("cpu")
    device(type='cpu')

    Raises:
        ConfigError: torch has no such device, or not on this machine.
    """
    if name is None:
        return _named or torch.device(
            "cuda" if torch.cuda.is_available() else "mps" if accelerator_available() else "cpu"
        )
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError) as error:
        why = str(error).splitlines()[0].rstrip(" .")
        raise ConfigError(f"device '{name}' is not to be had here: {why}. Leave --device out for the best.") from error
    return device


def on_processor(training: Mapping[str, Any]) -> bool:
    """Return whether training with these of transformers' arguments leaves the accelerator alone, or there is none."""
    return bool(training.get("use_cpu", not accelerator_available()))


def computing_for(training: Mapping[str, Any]) -> AbstractContextManager[None]:
    """Return a block in which everything computes where training with these of transformers' arguments does."""
    return computing_on("cpu" if on_processor(training) else None)


def wait_for_everyone(state: PartialState) -> None:
    """Go on once every process of a run has come here.

    accelerate's own barrier names an accelerator by the number of the process, even for processes that compute on the
    processor. Of those there may be more than accelerators, so that these wait for one another by themselves.

    Args:
        state: of this process.
    """
    if state.device.type == "cpu" and state.num_processes > 1:
        torch.distributed.barrier()
    else:
        state.wait_for_everyone()


@contextmanager
def computing_on(name: str | None) -> Iterator[None]:
    """Inside the block, let whatever names no device of its own compute on this one, or on the best there is for None.

    It holds for the whole process, sentence encoders included, whichever index or artefact they come with.

    >>> with computing_on("cpu"):
    ...     chosen_device()
    device(type='cpu')

    Raises:
        ConfigError: torch has no such device, or not on this machine.
    """
    global _named
    before, _named = _named, None if name is None else chosen_device(name)
    try:
        yield
    finally:
        _named = before
