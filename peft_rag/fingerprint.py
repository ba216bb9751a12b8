"""One number for a set of weights: the same for the same values, whatever file they came from."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def weights_fingerprint(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """Hash named tensors: name, type, shape and bytes of each, in the order of their names.

    Args:
        tensors: pairs of name and tensor, e.g. ``model.state_dict().items()``; any device, any shape.

    Returns:
        ``sha256:<hex>``.
    """
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(tensors, key=lambda pair: pair[0]):
        plain = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {plain.dtype} {tuple(plain.shape)};".encode())
        digest.update(plain.reshape(-1).view(torch.uint8).numpy())
    return f"sha256:{digest.hexdigest()}"
