"""One number for a set of weights, and for a tokenizer: the same for what does the same, whatever file it came from."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

_PROBES = (
    "The quick brown fox isn't 3.14 km from Zürich; antidisestablishmentarianism!",
    "ÉCOLE naïve ﬁne Straße İstanbul e\u0301",
    "東京 Москва مرحبا हिन्दी ไทย Ω ≠ ½",
    "def f(x):\n\treturn x ** 2  # ok\r\n\r\n",
    " \u00a0two  spaces, don’t e-mail <b>me</b> @ https://x.org/?q=1_000 🙂👍🏽 ",
)
"""Cases, accents, scripts, white space, code and signs: where tokenizers differ, these do."""
_WORDS = 4096


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


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """Hash what a tokenizer of transformers makes of fixed texts, special tokens included, and words it knows.

    Its files would say less: they change with the library that writes them, and not every habit stands in them. Of a
    large vocabulary some thousands of words are taken, evenly spread, since all would take seconds.

    Returns:
        ``sha256:<hex>``.
    """
    read = [tokenizer(text, truncation=False, padding=False, verbose=False)["input_ids"] for text in _PROBES]
    size = len(tokenizer)
    known = tokenizer.convert_ids_to_tokens(range(0, size, max(1, size // _WORDS)))
    return f"sha256:{hashlib.sha256(repr((size, known, read)).encode('utf-8', 'surrogatepass')).hexdigest()}"
