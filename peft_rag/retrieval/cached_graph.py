"""A graph built once and kept on disk, checked by hash; the vectors that it is over are its owner's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peft_rag.errors import RetrievalError
from peft_rag.retrieval.cache import cached
from peft_rag.retrieval.hnsw import GRAPH, HnswIndex, HnswOptions

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def cached_graph(folder: Path, vectors: NDArray[np.float32], options: HnswOptions, progress: str = "") -> HnswIndex:
    """Return the graph that a folder keeps, building it first if need be; see `cached`.

    Args:
        folder: where it is kept; its name should be a hash of all that decides the vectors.
        vectors: what it searches, ``(N, D)`` of length 1.
        options: how it is built and searched; a graph of other options is built anew.
        progress: what the progress bar says; no bar if empty.

    Raises:
        RetrievalError: a vector holds NaN or infinity, or the folder cannot be written.
    """

    def write(working: Path, index: HnswIndex) -> None:
        index.graph.save_index(str(working / GRAPH))

    def read(manifest: Mapping[str, Any]) -> HnswIndex:
        if manifest["options"] != asdict(options):
            raise RetrievalError(f"'{folder}' holds a graph of other options.")
        return HnswIndex.open_graph(folder / GRAPH, vectors, options)

    return cached(
        folder, {"options": asdict(options)}, lambda: HnswIndex.build(vectors, options, progress), write, read
    )
