"""Vectors in fewer bytes: how they are stored, and what they are when they are compared."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from peft_rag.errors import RetrievalError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

PRECISIONS = ("float32", "float16", "int8")

_LEVELS = 127
_SCALE_BYTES = 4


def pack(vectors: NDArray[np.float32], precision: str) -> NDArray[Any]:
    """Bring vectors into the form in which they are stored.

    ``float16`` rounds each number. ``int8`` keeps, with s = max_i |v_i| / 127, the whole numbers round(v_i / s), so
    that no number is off by more than s/2; the bytes of s, a little-endian float32, stand behind them.

    Dims: N vectors, D dimensions.

    Args:
        vectors: ``(N, D)``, finite.
        precision: ``float32``, ``float16`` or ``int8``.

    Returns:
        float32 ``(N, D)``, float16 ``(N, D)`` or int8 ``(N, D + 4)``.

    Raises:
        RetrievalError: a number is too large for ``float16``.
    """
    import numpy as np

    if precision != "int8":
        _check_range(vectors, precision)
        return np.ascontiguousarray(vectors, dtype=precision)
    scales = (np.abs(vectors).max(axis=1, keepdims=True) / _LEVELS).astype("<f4")
    levels = np.rint(vectors / np.maximum(scales, np.finfo(np.float32).tiny)).clip(-_LEVELS, _LEVELS).astype(np.int8)
    return np.concatenate([levels, np.ascontiguousarray(scales).view(np.int8)], axis=1)


def unpack(stored: NDArray[Any]) -> NDArray[np.float32]:
    """Return the vectors ``(N, D)`` that `pack` stored, as they are compared."""
    import numpy as np

    if stored.dtype != np.int8:
        return np.asarray(stored, dtype=np.float32)
    levels, scales = stored[:, :-_SCALE_BYTES], np.ascontiguousarray(stored[:, -_SCALE_BYTES:]).view("<f4")
    vectors: NDArray[np.float32] = np.multiply(levels, scales, dtype=np.float32)
    return vectors


def largest_error(vectors: NDArray[np.float32], precision: str) -> float:
    """Return by how much two packings of nearly the same vectors ``(N, D)`` may differ in a number."""
    import numpy as np

    largest = max(1.0, float(np.abs(vectors).max()))
    return largest * {"float32": 1e-3, "float16": 2e-3, "int8": 1.5 / _LEVELS}[precision]


def _check_range(vectors: NDArray[np.float32], precision: str) -> None:
    import numpy as np

    largest = float(np.abs(vectors).max(initial=0.0))
    if largest > float(np.finfo(precision).max):
        raise RetrievalError(
            f"a vector holds {largest:.3g}, more than {precision} can ({np.finfo(precision).max}). "
            "Store the vectors as float32 or int8, or compare by cosine."
        )
