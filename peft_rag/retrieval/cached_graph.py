"""A graph built once and kept on disk, checked by hash; the vectors that it is over are its owner's."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from peft_rag.errors import RetrievalError
from peft_rag.files import new_folder
from peft_rag.retrieval.cache import clear, explained, locked
from peft_rag.retrieval.hnsw import GRAPH, HnswIndex, HnswOptions
from peft_rag.retrieval.storage import read_manifest, write_manifest

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def cached_graph(folder: Path, vectors: NDArray[np.float32], options: HnswOptions, progress: str = "") -> HnswIndex:
    """Return the graph that a folder keeps, building it first if it keeps none or a damaged one.

    Of several processes that ask at once, one builds and the others wait for it.

    Args:
        folder: where it is kept; its name should be a hash of all that decides the vectors and the options.
        vectors: what it searches, ``(N, D)`` of length 1.
        options: how it is built and searched.
        progress: what the progress bar says; no bar if empty.

    Raises:
        RetrievalError: a vector holds NaN or infinity, or the folder cannot be written.
    """
    with locked(folder):
        kept = _read(folder, vectors, options)
        if kept is not None:
            return kept
        index = HnswIndex.build(vectors, options, progress)
        with explained(folder):
            clear(folder)
            with new_folder(folder) as working:
                index.graph.save_index(str(working / GRAPH))
                write_manifest(working, {"vectors": len(vectors)})
        return index


def _read(folder: Path, vectors: NDArray[np.float32], options: HnswOptions) -> HnswIndex | None:
    try:
        read_manifest(folder)
        return HnswIndex.open_graph(folder / GRAPH, vectors, options)
    except (RetrievalError, OSError, ValueError):
        return None
