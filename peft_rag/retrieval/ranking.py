"""Exact ranking of stored vectors by any metric, block by block, so that they need not fit in memory."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from peft_rag.retrieval.base import Neighbours
from peft_rag.retrieval.vectors import empty_neighbours

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from peft_rag.retrieval.shards import Shards

Exclude = Sequence[Collection[int]] | None

_CELLS = 1 << 24
_BLOCK = 1 << 16
_PAIRS = 1 << 10
_ROUNDING = 1e-4


@dataclass
class Candidates:
    """Rows that may be neighbours, in any order; no pair twice.

    Attributes:
        queries: number of the query, int64 ``(C,)``.
        rows: row number, int64 ``(C,)``.
        scores: float32 ``(C,)``, higher is closer.
    """

    queries: NDArray[np.int64]
    rows: NDArray[np.int64]
    scores: NDArray[np.float32]

    @classmethod
    def none(cls) -> Candidates:
        """No candidates."""
        import numpy as np

        return cls(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32))

    def __add__(self, other: Candidates) -> Candidates:
        import numpy as np

        return Candidates(
            np.concatenate([self.queries, other.queries]),
            np.concatenate([self.rows, other.rows]),
            np.concatenate([self.scores, other.scores]),
        )

    def best(self, k: int) -> Candidates:
        """Keep each query's ``k`` best, and all that tie with the last of them."""
        import numpy as np

        order = np.lexsort((self.rows, -self.scores, self.queries))
        queries, rows, scores = self.queries[order], self.rows[order], self.scores[order]
        first = np.searchsorted(queries, queries, side="left")
        last = np.minimum(first + k, np.searchsorted(queries, queries, side="right")) - 1
        kept = scores >= scores[last] if len(scores) else np.empty(0, bool)
        return Candidates(queries[kept], rows[kept], scores[kept])

    def neighbours(self, count: int, k: int, names: Callable[[NDArray[np.int64]], list[str]] | None) -> Neighbours:
        """Order them as neighbours of ``count`` queries.

        Args:
            count: how many queries there are.
            k: neighbours a query.
            names: gives the ids of rows, by which equal scores are ordered; by row if None.
        """
        import numpy as np

        found = empty_neighbours(count, k)
        order = np.lexsort((self._places(names), -self.scores, self.queries))
        queries, rows, scores = self.queries[order], self.rows[order], self.scores[order]
        rank = np.arange(len(rows)) - np.searchsorted(queries, queries, side="left")
        kept = rank < k
        found.positions[queries[kept], rank[kept]] = rows[kept]
        found.scores[queries[kept], rank[kept]] = scores[kept]
        return found

    def _places(self, names: Callable[[NDArray[np.int64]], list[str]] | None) -> NDArray[np.int64]:
        """Return what orders equal scores; ids are read only of rows whose score another row has too."""
        import numpy as np

        if names is None or not len(self.rows):
            return self.rows
        order = np.lexsort((self.scores, self.queries))
        queries, scores = self.queries[order], self.scores[order]
        same = (queries[1:] == queries[:-1]) & (scores[1:] == scores[:-1])
        tied = np.zeros(len(order), dtype=bool)
        tied[order[1:][same]] = tied[order[:-1][same]] = True
        places = np.zeros(len(order), dtype=np.int64)
        rows = np.unique(self.rows[tied])
        ranked = {row: place for place, (_, row) in enumerate(sorted(zip(names(rows), rows.tolist(), strict=True)))}
        places[tied] = [ranked[row] for row in self.rows[tied].tolist()]
        return places


def rank_exactly(
    shards: Shards,
    queries: NDArray[np.float32],
    k: int,
    metric: str,
    *,
    allowed: NDArray[np.bool_],
    exclude: Exclude,
    start: int = 0,
) -> Candidates:
    """Compare queries with every allowed row.

    A fast float32 product proposes; scores are then computed pair by pair in float64, so that a score depends on
    its two vectors alone and equal vectors tie exactly.

    Dims: Q queries, D dimensions, N rows.

    Args:
        shards: the stored vectors.
        queries: ``(Q, D)``.
        k: how many neighbours are wanted.
        metric: ``cosine``, ``ip`` or ``l2``.
        allowed: which rows may be found, ``(N,)``.
        exclude: for each query the rows it must not see.
        start: rows below this are not compared.

    Returns:
        The ``k`` best of each query, and what ties with them; fewer where there are fewer.
    """
    import numpy as np

    step = max(1, _CELLS // _BLOCK)
    found = Candidates.none()
    for first, vectors in shards.blocks(start, _BLOCK):
        rows = np.flatnonzero(allowed[first : first + len(vectors)])
        if not len(rows):
            continue
        vectors = np.asarray(vectors) if len(rows) == len(vectors) else np.asarray(vectors)[rows]
        rows = rows + first
        for begin in range(0, len(queries), step):
            forbidden = exclude[begin : begin + step] if exclude is not None else None
            near, columns = _propose(queries[begin : begin + step], vectors, rows, k, metric, forbidden)
            near += begin
            found += Candidates(near, rows[columns], score_pairs(queries, near, vectors, columns, metric))
        found = found.best(k)
    return found


def score_pairs(
    queries: NDArray[np.float32],
    left: NDArray[np.int64],
    vectors: NDArray[np.float32],
    right: NDArray[np.int64],
    metric: str,
) -> NDArray[np.float32]:
    """Return the score of each pair (query ``left[i]``, vector ``right[i]``), summed in float64."""
    import numpy as np

    scores = np.empty(len(left), dtype=np.float32)
    for start in range(0, len(left), _PAIRS):
        part = slice(start, start + _PAIRS)
        ours, theirs = queries[left[part]], vectors[right[part]]
        if metric == "l2":
            scores[part] = -np.square(np.subtract(ours, theirs, dtype=np.float64)).sum(axis=1)
        else:
            scores[part] = np.multiply(ours, theirs, dtype=np.float64).sum(axis=1)
    return scores


def _propose(
    queries: NDArray[np.float32],
    vectors: NDArray[np.float32],
    rows: NDArray[np.int64],
    k: int,
    metric: str,
    exclude: Exclude,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the pairs (query, column) that may be among the best ``k``, given the rounding of float32."""
    import numpy as np

    lengths = np.linalg.norm(queries, axis=1, keepdims=True)
    sizes = np.linalg.norm(vectors, axis=1)
    scores = queries @ vectors.T
    margin = _ROUNDING * lengths * sizes.max()
    if metric == "l2":
        scores = 2 * scores - np.square(sizes) - np.square(lengths)
        margin = _ROUNDING * np.square(lengths + sizes.max())
    for row, forbidden in enumerate(exclude or ()):
        if len(forbidden):
            scores[row, np.isin(rows, list(forbidden))] = -np.inf
    keep = scores > -np.inf
    if k < len(rows):
        keep &= scores >= np.partition(scores, -k, axis=1)[:, -k, None] - margin
    near, columns = np.nonzero(keep)
    return near.astype(np.int64), columns.astype(np.int64)
