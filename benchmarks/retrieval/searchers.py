"""The engines that are compared, each behind the same three calls."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hnswlib
import numpy as np
from numpy.typing import NDArray

from peft_rag.retrieval.store import IndexStore
from peft_rag.retrieval.vectors import exact_search

Search = Callable[[NDArray[np.float32], int], NDArray[np.int64]]


@dataclass(frozen=True)
class Searcher:
    """One engine over one set of vectors.

    Attributes:
        name: in the table.
        search: from queries ``(Q, D)`` and k to positions ``(Q, k)``.
        set_ef: sets how many candidates are looked at; None where nothing is approximate.
    """

    name: str
    search: Search
    set_ef: Callable[[int], None] | None = None


def positions(name: str, store: IndexStore) -> Searcher:
    """Search an index folder of this library for rows, as training and prediction use it."""
    return Searcher(name, lambda queries, k: store.snapshot.search(queries, k).positions, _ef_of(store))


def documents(name: str, store: IndexStore) -> Searcher:
    """Search an index folder of this library for documents, as ``peft-rag index search`` does."""

    def search(queries: NDArray[np.float32], k: int) -> NDArray[np.int64]:
        found = store.search_vectors(queries, k)
        return np.array([[int(hit.id[1:]) for hit in hits] for hits in found])

    return Searcher(name, search, _ef_of(store))


def _ef_of(store: IndexStore) -> Callable[[int], None]:
    def set_ef(ef: int) -> None:
        store.snapshot = store.snapshot.with_ef(ef)

    return set_ef


def load_hnswlib(path: Path, dimension: int) -> Any:
    """Load a graph file of this library by plain hnswlib; its ids are positions."""
    index = hnswlib.Index(space="ip", dim=dimension)
    index.load_index(str(path))
    return index


def raw_hnswlib(index: Any) -> Searcher:
    """Plain hnswlib over a loaded graph; the one that this library searches, or a copy of its own.

    Two copies of one graph differ in speed by as much as a tenth, by where they lie in memory, so only the same copy
    tells what a library adds.
    """

    def search(queries: NDArray[np.float32], k: int) -> NDArray[np.int64]:
        found: NDArray[np.int64] = index.knn_query(queries, k=k)[0].astype(np.int64)
        return found

    return Searcher("hnswlib", search, index.set_ef)


def faiss_hnsw(vectors: NDArray[np.float32], links: int, ef_construction: int) -> Searcher | None:
    """Return faiss's HNSW with as many links and candidates; None where faiss-cpu is not installed."""
    faiss = _faiss()
    if faiss is None:
        return None
    index = faiss.IndexHNSWFlat(vectors.shape[1], links, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = ef_construction
    index.add(vectors)

    def set_ef(ef: int) -> None:
        index.hnsw.efSearch = ef

    return Searcher("faiss HNSW", lambda queries, k: index.search(queries, k)[1], set_ef)


def faiss_exact(vectors: NDArray[np.float32]) -> Searcher | None:
    """Return faiss's exact search; None where faiss-cpu is not installed."""
    faiss = _faiss()
    if faiss is None:
        return None
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)
    return Searcher("faiss exact", lambda queries, k: index.search(queries, k)[1])


def our_exact(vectors: NDArray[np.float32]) -> Searcher:
    """Compare everything, by this library."""
    return Searcher("peft-rag exact", lambda queries, k: exact_search(queries, vectors, k).positions)


def _faiss() -> Any:
    try:
        import faiss
    except ImportError:
        return None
    return faiss
