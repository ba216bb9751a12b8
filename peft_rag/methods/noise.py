"""Warnings that peft causes itself and nobody can act on."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_NEEDLESS = (
    # peft asks transformers 5 for a property by its old name.
    r".*is_gradient_checkpointing` is deprecated",
    # Normalisation layers are what LN tuning is for.
    r"Unsupported layer type '<class '.*Norm'>' encountered",
    # Virtual tokens move all positions alike; inputs of one batch are of one length where that matters.
    r"Position ids are not supported for parameter efficient tuning",
    # BEFT works without; that it then cannot be merged is said when someone tries.
    r"Detected that the base layer has no bias term",
)
_NEEDLESS_WITHOUT_A_GPU = (
    # BOFT does without its CUDA extension.
    r"Failed to load the CUDA extension",
    r"Setting boft_n_butterfly_factor to 1 to speed up",
)


@contextmanager
def quiet_peft() -> Iterator[None]:
    """Silence, within the block, warnings of peft that say nothing to its user; all others stay."""
    with warnings.catch_warnings():
        for message in _NEEDLESS:
            warnings.filterwarnings("ignore", message=message)
        for message in () if torch.cuda.is_available() else _NEEDLESS_WITHOUT_A_GPU:
            warnings.filterwarnings("ignore", message=message)
        yield
