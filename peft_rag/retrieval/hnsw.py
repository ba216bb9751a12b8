"""Approximate search in a hierarchical navigable small world graph, exact where that is as fast."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from copy import copy
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peft_rag.counts import check_count
from peft_rag.errors import RetrievalError
from peft_rag.files import new_folder
from peft_rag.retrieval.base import Encoder, Neighbours
from peft_rag.retrieval.dense import VECTORS, DenseRetriever
from peft_rag.retrieval.storage import load_array, read_manifest, save_array, write_manifest
from peft_rag.retrieval.vectors import (
    check_finite,
    check_search,
    empty_neighbours,
    exact_search,
    fill_nearest,
    pair_scores,
    surely_nearest,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

GRAPH = "graph.hnsw"
_SEED = 100
_SLACK = 8
_GROWTH = 4
_EXACT_FROM = 4
_ADDED = 8192


@dataclass(frozen=True)
class HnswOptions:
    """How a graph is built and searched.

    Attributes:
        M: links a node has on each level; more find more and take more memory.
        ef_construction: candidates looked at for each node while building.
        ef: candidates looked at for each query.
        threads: threads that build; 1 builds the same graph every time, 0 uses every core.
    """

    M: int = 16
    ef_construction: int = 200
    ef: int = 64
    threads: int = 1

    def __post_init__(self) -> None:
        for name, least in (("M", 2), ("ef_construction", 1), ("ef", 1), ("threads", 0)):
            check_count(f"hnsw option {name}", getattr(self, name), least)


class HnswIndex:
    """A graph over vectors of length 1, and the vectors.

    The graph proposes; scores are recomputed from the vectors, so they equal those of exact search. Excluded
    positions are masked after fetching more than asked for. A query for which the graph finds too few is
    searched exactly.

    Source: Malkov and Yashunin 2018, arXiv:1603.09320.
    """

    def __init__(self, graph: Any, vectors: NDArray[np.float32], options: HnswOptions) -> None:
        """Hold a graph that is built; see `build` and `load`."""
        self.graph = graph
        self.vectors = vectors
        self.options = options

    @classmethod
    def build(cls, vectors: NDArray[np.float32], options: HnswOptions | None = None, progress: str = "") -> HnswIndex:
        """Build a graph over vectors ``(N, D)`` of length 1.

        Args:
            vectors: what it searches.
            options: how it is built and searched.
            progress: what the progress bar says; no bar if empty.

        Raises:
            RetrievalError: a vector holds NaN or infinity.
        """
        import numpy as np
        from tqdm.auto import tqdm

        check_finite(vectors, "indexed")
        options = options or HnswOptions()
        graph = _new_graph(vectors.shape[1])
        graph.init_index(
            max_elements=max(1, len(vectors)),
            M=options.M,
            ef_construction=options.ef_construction,
            random_seed=_SEED,
        )
        with tqdm(total=len(vectors), desc=progress, unit="vector", leave=False, disable=not progress) as bar:
            for start in range(0, len(vectors), _ADDED):
                part = vectors[start : start + _ADDED]
                graph.add_items(part, np.arange(start, start + len(part)), num_threads=options.threads or -1)
                bar.update(len(part))
        return cls(graph, vectors, options)

    def search(
        self, queries: NDArray[np.float32], k: int, exclude: Sequence[Collection[int]] | None = None
    ) -> Neighbours:
        """Find vectors of large cosine; arguments, result and errors are those of `exact_search`."""
        import numpy as np

        check_search(queries, self.vectors, k, exclude)
        check_finite(queries, "query")
        found = empty_neighbours(len(queries), k)
        pending = np.arange(len(queries))
        fetch = 2 * k + _SLACK
        while len(pending) and fetch * _EXACT_FROM <= len(self.vectors):
            fetched = self._fetch(queries[pending], fetch)
            if fetched is None:
                break
            candidates, cosines = fetched
            near, enough = surely_nearest(cosines, _allowed(candidates, pending, exclude), k)
            rows, ranks = np.nonzero(near & enough[:, None])
            columns = candidates[rows, ranks]
            rows = pending[rows]
            fill_nearest(found, 0, rows, columns, pair_scores(queries, self.vectors, rows, columns))
            pending = pending[~enough]
            fetch *= _GROWTH
        if len(pending):
            remaining = [exclude[row] for row in pending.tolist()] if exclude is not None else None
            exact = exact_search(queries[pending], self.vectors, k, remaining)
            found.positions[pending], found.scores[pending] = exact.positions, exact.scores
        return found

    def save(self, folder: Path) -> None:
        """Write vectors, graph and manifest into a new folder.

        Raises:
            ArtefactError: the folder already holds something.
        """
        with new_folder(folder) as working:
            save_array(working / VECTORS, self.vectors)
            self.graph.save_index(str(working / GRAPH))
            write_manifest(working, {"options": asdict(self.options)})

    @classmethod
    def load(cls, folder: Path) -> HnswIndex:
        """Read what `save` wrote; no file is opened before its SHA-256 has matched.

        Raises:
            RetrievalError: the folder holds no index, or a damaged one.
        """
        manifest = read_manifest(folder)
        return cls.open_graph(folder / GRAPH, load_array(folder / VECTORS), HnswOptions(**manifest["options"]))

    @classmethod
    def open_graph(cls, path: Path, vectors: NDArray[np.float32], options: HnswOptions) -> HnswIndex:
        """Open a graph file whose hash has been checked.

        Raises:
            RetrievalError: it is no graph over these vectors.
        """
        graph = _new_graph(vectors.shape[1])
        try:
            graph.load_index(str(path), max_elements=max(1, len(vectors)))
        except RuntimeError as error:
            raise RetrievalError(f"'{path}' is no HNSW graph ({error}). Build the index anew.") from error
        if graph.get_current_count() != len(vectors):
            raise RetrievalError(
                f"'{path}' is a graph of {graph.get_current_count():,} vectors, not of {len(vectors):,}. "
                "Build the index anew."
            )
        return cls(graph, vectors, options)

    def with_ef(self, ef: int) -> HnswIndex:
        """Return the same graph, searched by looking at ``ef`` candidates for each query."""
        return HnswIndex(self.graph, self.vectors, replace(self.options, ef=ef))

    def _fetch(self, queries: NDArray[np.float32], count: int) -> tuple[NDArray[np.int64], NDArray[np.float32]] | None:
        """Return the graph's candidates and their cosines ``(Q, count)``; None if it cannot reach that many."""
        import numpy as np

        self.graph.set_ef(max(self.options.ef, count))
        try:
            labels, distances = self.graph.knn_query(queries, k=count)
        except RuntimeError:
            return None
        return np.asarray(labels, dtype=np.int64), 1 - distances


class HnswRetriever(DenseRetriever):
    """Cosine similarity of sentence vectors through an HNSW graph; exact for a small corpus.

    Source: Malkov and Yashunin 2018, arXiv:1603.09320.
    """

    name = "hnsw"

    def __init__(
        self,
        encoder: Encoder,
        *,
        M: int = 16,  # noqa: N803 - the name it has in the paper and in hnswlib
        ef_construction: int = 200,
        ef: int = 64,
        exact_below: int = 10_000,
        threads: int = 1,
    ) -> None:
        """Take encoder and options.

        Args:
            encoder: what turns texts into vectors.
            M: links a node has on each level; more find more and take more memory.
            ef_construction: candidates looked at for each document while building.
            ef: candidates looked at for each query; more find more and take longer.
            exact_below: a corpus of fewer documents is searched exactly and needs no graph.
            threads: threads that build; 1 builds the same graph every time, 0 uses every core.

        Raises:
            ConfigError: an option is out of range.
        """
        super().__init__(encoder)
        self.options = HnswOptions(M, ef_construction, ef, threads)
        self.exact_below = exact_below
        check_count("hnsw option exact_below", exact_below, 0)
        self._graph: HnswIndex | None = None

    def settings(self) -> dict[str, Any]:
        return {**asdict(self.options), "exact_below": self.exact_below}

    def build(self, vectors: NDArray[np.float32]) -> None:
        self._graph = HnswIndex.build(vectors, self.options) if len(vectors) >= self.exact_below else None

    def search_vectors(
        self, queries: NDArray[np.float32], k: int, exclude: Sequence[Collection[int]] | None = None
    ) -> Neighbours:
        if self._graph is None:
            return super().search_vectors(queries, k, exclude)
        return self._graph.search(queries, k, exclude)

    def with_ef(self, ef: int) -> HnswRetriever:
        """Return the same index, searched by looking at ``ef`` candidates for each query.

        Raises:
            RetrievalError: it searches exactly and has no graph.
        """
        if self._graph is None:
            raise no_graph(self.exact_below)
        other = copy(self)
        other._graph = self._graph.with_ef(ef)
        other.options = other._graph.options
        return other

    def write_index(self, folder: Path) -> None:
        if self._graph is not None:
            self._graph.graph.save_index(str(folder / GRAPH))

    def read_index(self, folder: Path, vectors: NDArray[np.float32]) -> None:
        path = folder / GRAPH
        self._graph = HnswIndex.open_graph(path, vectors, self.options) if path.is_file() else None


def no_graph(exact_below: int) -> RetrievalError:
    """Say that an index is too small to have a graph."""
    return RetrievalError(
        f"the index has no graph to choose ef for: below {exact_below:,} documents it is searched exactly, and all are "
        "found. Build it with a smaller exact_below."
    )


def _new_graph(dimension: int) -> Any:
    import hnswlib

    return hnswlib.Index(space="ip", dim=dimension)


def _allowed(
    candidates: NDArray[np.int64], queries: NDArray[np.int64], exclude: Sequence[Collection[int]] | None
) -> NDArray[np.bool_]:
    """Return which candidates ``(Q, C)`` of the named queries are not excluded."""
    import numpy as np

    allowed = np.ones(candidates.shape, dtype=bool)
    if exclude is None:
        return allowed
    for row, query in enumerate(queries.tolist()):
        if len(exclude[query]):
            allowed[row] = ~np.isin(candidates[row], list(exclude[query]))
    return allowed
