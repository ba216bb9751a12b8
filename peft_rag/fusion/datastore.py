"""The features of labelled documents in the tuned space, and what finds the nearest among them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from peft_rag.retrieval.base import Neighbours

Search = Literal["exact", "hnsw"]
"""How features are searched: compared with every query, or by an HNSW graph over them."""

SEARCHES: tuple[Search, ...] = ("exact", "hnsw")


class Index(Protocol):
    """Vectors that can be searched, as `peft_rag.retrieval.vectors.exact_search` says."""

    def search(
        self, queries: NDArray[np.float32], k: int, exclude: Sequence[Collection[int]] | None = None
    ) -> Neighbours: ...


def unit(features: Tensor) -> NDArray[np.float32]:
    """Return features ``(N, D)`` scaled to length one, as float32 in NumPy."""
    from torch.nn.functional import normalize

    scaled: NDArray[np.float32] = normalize(features.float(), dim=-1).cpu().numpy()
    return scaled


def feature_index(features: Tensor, search: Search = "exact", kept: Path | None = None, progress: str = "") -> Index:
    """Return features, ready to be searched.

    Args:
        features: of M decisions, ``(M, F)``.
        search: how.
        kept: folder that keeps a graph, named by a hash of what decides the features; it is not kept if None.
        progress: what the progress bar says while a graph is built; no bar if empty.
    """
    from peft_rag.retrieval.cached_graph import cached_graph
    from peft_rag.retrieval.hnsw import HnswIndex, HnswOptions
    from peft_rag.retrieval.vectors import ExactIndex

    vectors = unit(features)
    if search == "exact":
        return ExactIndex(vectors)
    if kept is None:
        return HnswIndex.build(vectors, HnswOptions(), progress)
    return cached_graph(kept, vectors, HnswOptions(), progress)
