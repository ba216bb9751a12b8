"""Exact search among vectors."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING

from peft_rag.errors import RetrievalError, ShapeError
from peft_rag.retrieval.base import NO_POSITION, Neighbours, check_exclude, check_k

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_CELLS = 1 << 24
_PAIRS = 1 << 15
_ROUNDING = 1e-5


def normalise(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scale vectors ``(N, D)`` to length 1; a zero vector stays zero."""
    import numpy as np

    vectors = np.asarray(vectors, dtype=np.float32)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    scaled: NDArray[np.float32] = vectors / np.maximum(lengths, np.finfo(np.float32).tiny)
    return scaled


def exact_search(
    queries: NDArray[np.float32],
    vectors: NDArray[np.float32],
    k: int,
    exclude: Sequence[Collection[int]] | None = None,
) -> Neighbours:
    """Find the vectors with the largest inner products, which are cosines where all have length 1.

    Vectors that are searched more than once are checked but once by an `ExactIndex`.

    Dims: Q queries, N vectors, D dimensions, K neighbours.

    Args:
        queries: ``(Q, D)``.
        vectors: ``(N, D)``.
        k: how many to return; fewer come back, padded, where fewer are allowed.
        exclude: for each query the positions it must not see.

    Raises:
        ConfigError: ``k`` is below 1.
        ShapeError: dimensions differ, or ``exclude`` is not as long as ``queries``.
        RetrievalError: a vector holds NaN or infinity.
    """
    check_search(queries, vectors, k, exclude)
    return ExactIndex(vectors).search(queries, k, exclude)


class ExactIndex:
    """Vectors ``(N, D)`` that are compared with every query.

    A fast float32 product proposes candidates; their scores are then computed one by one in float64 and
    rounded to float32, so that a score depends on its two vectors alone, and equal vectors tie exactly.
    """

    def __init__(self, vectors: NDArray[np.float32]) -> None:
        """Check what is searched.

        Raises:
            RetrievalError: a vector holds NaN or infinity.
        """
        import numpy as np

        check_finite(vectors, "indexed")
        self.vectors = vectors
        self._longest = float(np.sqrt(np.einsum("nd,nd->n", vectors, vectors).max())) if len(vectors) else 0.0

    def search(
        self, queries: NDArray[np.float32], k: int, exclude: Sequence[Collection[int]] | None = None
    ) -> Neighbours:
        """Find the vectors with the largest inner products; arguments, result and errors are `exact_search`'s."""
        check_search(queries, self.vectors, k, exclude)
        check_finite(queries, "query")
        found = empty_neighbours(len(queries), k)
        if not len(self.vectors):
            return found
        step = max(1, _CELLS // len(self.vectors))
        for start in range(0, len(queries), step):
            block = queries[start : start + step]
            forbidden = exclude[start : start + step] if exclude is not None else None
            rows, columns = candidates(block, block @ self.vectors.T, k, forbidden, self._longest)
            scores = pair_scores(block, self.vectors, rows, columns)
            fill_nearest(found, start, rows, columns, scores)
        return found


def pair_scores(
    queries: NDArray[np.float32],
    vectors: NDArray[np.float32],
    rows: NDArray[np.int64],
    columns: NDArray[np.int64],
) -> NDArray[np.float32]:
    """Return the inner product of each pair (query ``rows[i]``, vector ``columns[i]``), summed in float64."""
    import numpy as np

    scores = np.empty(len(rows), dtype=np.float32)
    for start in range(0, len(rows), _PAIRS):
        part = slice(start, start + _PAIRS)
        left = queries[rows[part]].astype(np.float64)
        left *= vectors[columns[part]]
        scores[part] = left.sum(axis=1)
    return scores


def fill_nearest(
    found: Neighbours,
    start: int,
    rows: NDArray[np.int64],
    columns: NDArray[np.int64],
    scores: NDArray[np.float32],
) -> None:
    """Write each row's best candidates into ``found``, best first, equal scores by position.

    Args:
        found: where to write; row ``r`` of the candidates is row ``start + r``.
        start: the first row.
        rows: the candidates' rows.
        columns: their positions.
        scores: their scores.
    """
    import numpy as np

    order = np.lexsort((columns, -scores, rows))
    rows, columns, scores = rows[order], columns[order], scores[order]
    rank = np.arange(len(rows)) - np.searchsorted(rows, rows, side="left")
    kept = rank < found.k
    found.positions[start + rows[kept], rank[kept]] = columns[kept]
    found.scores[start + rows[kept], rank[kept]] = scores[kept]


def surely_nearest(
    scores: NDArray[np.float32], free: NDArray[np.bool_], k: int
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return which candidates ``(Q, C)`` may be among the best ``k``, and which queries have fetched enough of them.

    Enough is fetched where nothing beyond can be as close as the last neighbour, nor tie with it.
    """
    import numpy as np

    margin = _ROUNDING * np.maximum(1.0, np.abs(scores).max(axis=1, keepdims=True))
    last = -np.sort(-np.where(free, scores, -np.inf), axis=1)[:, k - 1, None]
    enough = (last > -np.inf) & (last > scores.min(axis=1, keepdims=True) + margin)
    return free & (scores >= last - margin), enough.ravel()


def empty_neighbours(queries: int, k: int) -> Neighbours:
    """Return neighbours for a number of queries, all padding."""
    import numpy as np

    positions = np.full((queries, k), NO_POSITION, dtype=np.int64)
    return Neighbours(positions, np.full((queries, k), -np.inf, dtype=np.float32))


def check_search(
    queries: NDArray[np.float32],
    vectors: NDArray[np.float32],
    k: int,
    exclude: Sequence[Collection[int]] | None,
) -> None:
    """Raise the `ConfigError` or `ShapeError` that `exact_search` promises."""
    check_k(k)
    if queries.ndim != 2 or vectors.ndim != 2 or queries.shape[1] != vectors.shape[1]:
        raise ShapeError(
            f"queries (Q, D) and vectors (N, D) must agree about D, but have shapes {queries.shape} "
            f"and {vectors.shape}."
        )
    check_exclude(exclude, len(queries))


def check_finite(vectors: NDArray[np.float32], kind: str) -> None:
    """Raise `RetrievalError` if a vector holds NaN or infinity.

    Args:
        vectors: ``(N, D)``.
        kind: what the message calls them.
    """
    import numpy as np

    if not np.isfinite(vectors.sum(dtype=np.float64)):
        row = int(np.argmin(np.isfinite(vectors).all(axis=1)))
        raise RetrievalError(
            f"the {kind} vector {row} holds NaN or infinity. Look for a text or a model that makes it so."
        )


def candidates(
    queries: NDArray[np.float32],
    scores: NDArray[np.float32],
    k: int,
    exclude: Sequence[Collection[int]] | None,
    longest: float = 1.0,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return rows and columns of all that could be among the best ``k``, given how scores in float32 are rounded.

    Args:
        queries: ``(Q, D)``.
        scores: their inner products with what is searched, ``(Q, N)``; those of what is excluded are overwritten.
        k: how many are wanted.
        exclude: for each query the positions it must not see.
        longest: length of the longest vector that is searched.
    """
    import numpy as np

    margin = _ROUNDING * longest * np.linalg.norm(queries, axis=1, keepdims=True)
    for row, positions in _excluded(exclude):
        scores[row, positions] = -np.inf
    if k < scores.shape[1]:
        bound = np.partition(scores, -k, axis=1)[:, -k, None] - margin
        keep = scores >= bound
        keep &= scores > -np.inf
    else:
        keep = scores > -np.inf
    rows, columns = np.nonzero(keep)
    return rows, columns


def _excluded(exclude: Sequence[Collection[int]] | None) -> Iterator[tuple[int, list[int]]]:
    return ((row, list(positions)) for row, positions in enumerate(exclude or ()) if len(positions))
