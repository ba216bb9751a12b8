"""The graph of an index folder: written whole, grown in place, its deleted slots used again."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peft_rag.errors import RetrievalError
from peft_rag.retrieval.base import Neighbours
from peft_rag.retrieval.manifest import GraphEntry, StoreSettings, adopt_durably, write_durably
from peft_rag.retrieval.projection import SAMPLE, principal_directions
from peft_rag.retrieval.ranking import Candidates, Exclude, score_pairs
from peft_rag.retrieval.vectors import empty_neighbours, surely_nearest

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from peft_rag.retrieval.shards import Shards

_SEED = 100
_SLACK = 8
_GROWTH = 4
_EXACT_FROM = 4
_BATCH = 8192
_PAIRS = 4096
_CLEAR = 4e-6  # more than float32 loses in a sum of a few hundred products
_PENDING_SHARE = 10


class StoredGraph:
    """An HNSW graph whose labels are the row numbers of an index.

    Rows added since it was written, and deletions, need not be in it: the former are searched exactly, the latter
    masked. `refreshed` brings it up to date. With a projection it compares shorter vectors, Pᵀq and Pᵀd, and all that
    it looks at is then ranked by the stored vectors.

    Source: Malkov and Yashunin 2018, arXiv:1603.09320.
    """

    def __init__(
        self, graph: Any, entry: GraphEntry, settings: StoreSettings, projection: NDArray[np.float32] | None
    ) -> None:
        """Hold a graph that is built, and P ``(D, d)`` if it has one; see `open`."""
        self.graph = graph
        self.entry = entry
        self.settings = settings
        self.projection = projection

    @classmethod
    def open(cls, folder: Path, entry: GraphEntry, dimension: int, settings: StoreSettings) -> StoredGraph:
        """Open a graph whose files' hashes have been checked.

        Raises:
            RetrievalError: it is no graph of that many elements.
        """
        projection = _read_projection(folder, entry.projection)
        return cls(_load(folder, entry, _compared(dimension, projection), settings), entry, settings, projection)

    def settle(
        self, queries: NDArray[np.float32], k: int, allowed: NDArray[np.bool_]
    ) -> tuple[NDArray[np.int64], Neighbours]:
        """Return the queries that the graph answers by itself, and their neighbours.

        Those are the ones whose first ``k`` candidates are all allowed and clearly apart from one another and from the
        next: ranking them by the stored vectors would change nothing but the last digit of a score.

        Returns:
            numbers of queries ``(A,)``, and rows and scores ``(A, k)``.
        """
        import numpy as np

        able = len(queries) and self.projection is None and k < self.entry.slots
        fetched = self._fetch(queries, k + 1) if able else None
        if fetched is None:
            return np.empty(0, np.int64), empty_neighbours(0, k)
        rows, scores = fetched
        margin = _CLEAR * np.maximum(1.0, np.abs(scores[:, -1:]))
        apart = (scores[:, :-1] - scores[:, 1:] > margin).all(axis=1)
        answered = np.flatnonzero(apart & allowed[rows[:, :k]].all(axis=1))
        return answered, Neighbours(rows[answered, :k], scores[answered, :k])

    def search(
        self,
        shards: Shards,
        queries: NDArray[np.float32],
        k: int,
        allowed: NDArray[np.bool_],
        exclude: Exclude,
    ) -> tuple[Candidates, NDArray[np.int64]]:
        """Return candidates, and the queries for which the graph finds too few.

        More than ``k`` are fetched, then what is not allowed is masked; a query left with fewer than ``k`` fetches
        more, until comparing everything is as fast.
        """
        import numpy as np

        found, pending = Candidates.none(), np.arange(len(queries))
        fetch = 2 * k + _SLACK if self.projection is None else max(self.settings.ef, 2 * k + _SLACK)
        while len(pending) and fetch * _EXACT_FROM <= self.entry.slots:
            fetched = self._fetch(queries[pending], fetch)
            if fetched is None:
                break
            rows, scores = fetched
            free = _allowed(rows, pending, allowed, exclude)
            near, enough = surely_nearest(scores, free, k) if self.projection is None else (free, free.sum(axis=1) >= k)
            places, ranks = np.nonzero(near & enough[:, None])
            found += self._scored(shards, queries, pending[places], rows[places, ranks])
            pending = pending[~enough]
            fetch *= _GROWTH
        return found, pending

    def _fetch(self, queries: NDArray[np.float32], count: int) -> tuple[NDArray[np.int64], NDArray[np.float32]] | None:
        """Return the graph's candidates and scores ``(Q, count)``, best first; None if it cannot reach that many."""
        import numpy as np

        self.graph.set_ef(max(self.settings.ef, count))
        queries = queries if self.projection is None else queries @ self.projection
        try:
            labels, distances = self.graph.knn_query(queries, k=count)
        except RuntimeError:
            return None
        return labels.astype(np.int64), -distances if self.settings.metric == "l2" else 1 - distances

    def _scored(
        self, shards: Shards, queries: NDArray[np.float32], near: NDArray[np.int64], rows: NDArray[np.int64]
    ) -> Candidates:
        """Return pairs with the scores of exact search, a few vectors in memory at a time."""
        import numpy as np

        scores = np.empty(len(rows), dtype=np.float32)
        for start in range(0, len(rows), _PAIRS):
            part = slice(start, start + _PAIRS)
            vectors = shards.vectors(rows[part])
            scores[part] = score_pairs(queries, near[part], vectors, np.arange(len(vectors)), self.settings.metric)
        return Candidates(near, rows, scores)


def refreshed(
    folder: Path,
    generation: int,
    present: GraphEntry | None,
    shards: Shards,
    deleted: NDArray[np.bool_],
    settings: StoreSettings,
    progress: str | None = None,
) -> GraphEntry | None:
    """Return the graph an index should have now; written as a new file if the present one will not do.

    Args:
        folder: the index.
        generation: numbers new files.
        present: the graph there is.
        shards: all documents.
        deleted: which rows are deleted, ``(N,)``.
        settings: when there is a graph, and how it is built.
        progress: the title of a progress bar; none without.
    """
    import numpy as np

    live = len(deleted) - int(deleted.sum())
    if live < settings.exact_below and present is None:
        return None
    if present is None:
        rows = np.flatnonzero(~deleted)
        directions = _write_projection(folder, f"projection-{generation:06d}.npy", shards, rows, settings)
        projection = _read_projection(folder, directions)
        graph = _new(max(1, live), _compared(shards.dimension, projection), settings)
    else:
        gone = int(deleted[: present.rows].sum()) - present.deleted
        if len(deleted) - present.rows + gone <= min(settings.exact_below, present.rows // _PENDING_SHARE):
            return present
        rows = present.rows + np.flatnonzero(~deleted[present.rows :])
        directions, projection = present.projection, _read_projection(folder, present.projection)
        graph = _with_room(folder, present, _compared(shards.dimension, projection), settings, deleted, len(rows))
    _add(graph, rows, shards, projection, settings, progress)
    name = f"graph-{generation:06d}.hnsw"
    adopt_durably(folder / name, graph.save_index, graph.index_file_size)
    marked = int(deleted.sum())
    return GraphEntry(name, len(deleted), marked, int(graph.get_current_count()), directions)


def _write_projection(folder: Path, name: str, shards: Shards, rows: NDArray[np.int64], settings: StoreSettings) -> str:
    """Write the directions that the graph will compare, from a sample of rows; return the file, or nothing if all."""
    import numpy as np

    if not len(rows) or not 0 < settings.graph_dimensions < shards.dimension:
        return ""
    sample = rows[np.unique(np.linspace(0, len(rows) - 1, SAMPLE).astype(np.int64))]
    directions = principal_directions(shards.vectors(sample), settings.graph_dimensions, settings.metric)
    write_durably(folder / name, lambda file: np.save(file, directions, allow_pickle=False))
    return name


def _read_projection(folder: Path, name: str) -> NDArray[np.float32] | None:
    import numpy as np

    directions: NDArray[np.float32] | None = np.load(folder / name, allow_pickle=False) if name else None
    return directions


def _compared(dimension: int, projection: NDArray[np.float32] | None) -> int:
    """Return the dimension of what a graph compares."""
    return dimension if projection is None else int(projection.shape[1])


def _new(capacity: int, dimension: int, settings: StoreSettings) -> Any:
    graph = _empty(dimension, settings)
    graph.init_index(
        max_elements=capacity,
        M=settings.M,
        ef_construction=settings.ef_construction,
        random_seed=_SEED,
        allow_replace_deleted=True,
    )
    return graph


def _with_room(
    folder: Path,
    present: GraphEntry,
    dimension: int,
    settings: StoreSettings,
    deleted: NDArray[np.bool_],
    coming: int,
) -> Any:
    """Load a graph, mark what has been deleted, and give it room for what is coming."""
    import numpy as np

    graph = _load(folder, present, dimension, settings)
    labels = np.asarray(graph.get_ids_list(), dtype=np.int64)
    free = 0
    for label in labels[deleted[labels]].tolist():
        free += 1
        try:
            graph.mark_deleted(label)
        except RuntimeError:
            continue  # It was marked when the graph was last written.
    graph.resize_index(max(1, present.slots + max(0, coming - free)))
    return graph


def _add(
    graph: Any,
    rows: NDArray[np.int64],
    shards: Shards,
    projection: NDArray[np.float32] | None,
    settings: StoreSettings,
    progress: str | None,
) -> None:
    from tqdm import tqdm

    with tqdm(total=len(rows), desc=progress, unit="document", disable=progress is None) as bar:
        for start in range(0, len(rows), _BATCH):
            batch = rows[start : start + _BATCH]
            vectors = shards.vectors(batch)
            vectors = vectors if projection is None else vectors @ projection
            graph.add_items(vectors, batch, num_threads=settings.threads or -1, replace_deleted=True)
            bar.update(len(batch))


def _load(folder: Path, entry: GraphEntry, dimension: int, settings: StoreSettings) -> Any:
    graph, path = _empty(dimension, settings), folder / entry.file
    try:
        graph.load_index(str(path), max_elements=max(1, entry.slots), allow_replace_deleted=True)
    except RuntimeError as error:
        if not path.exists():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path)) from None
        raise RetrievalError(f"'{path}' is no HNSW graph ({error}). Build the index anew.") from error
    if graph.get_current_count() != entry.slots:
        raise RetrievalError(
            f"'{path}' is a graph of {graph.get_current_count():,} elements, not of {entry.slots:,}. "
            "Build the index anew."
        )
    return graph


def _empty(dimension: int, settings: StoreSettings) -> Any:
    import hnswlib

    return hnswlib.Index(space="l2" if settings.metric == "l2" else "ip", dim=dimension)


def _allowed(
    rows: NDArray[np.int64], queries: NDArray[np.int64], allowed: NDArray[np.bool_], exclude: Exclude
) -> NDArray[np.bool_]:
    """Return which candidates ``(Q, C)`` of the named queries may be found."""
    import numpy as np

    free: NDArray[np.bool_] = allowed[rows]
    if exclude is not None:
        for place, query in enumerate(queries.tolist()):
            if len(exclude[query]):
                free[place] &= ~np.isin(rows[place], list(exclude[query]))
    return free
