"""The labelled documents as a fusion remembers them, and what finds the nearest among them in the tuned space."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from peft_rag.errors import RetrievalError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from peft_rag.decisions import Decisions
    from peft_rag.retrieval.base import Neighbours

Search = Literal["exact", "hnsw"]
"""How features are searched: compared with every query, or by an HNSW graph over them."""

SEARCHES: tuple[Search, ...] = ("exact", "hnsw")


class Index(Protocol):
    """Vectors that can be searched, as `peft_rag.retrieval.vectors.exact_search` says."""

    def search(
        self, queries: NDArray[np.float32], k: int, exclude: Sequence[Collection[int]] | None = None
    ) -> Neighbours: ...


@dataclass(frozen=True)
class Memory:
    """The labelled documents as a fusion sees them; built from the corpus when needed, never saved.

    Attributes:
        targets: of the M decisions on N documents, as the task gives them: ``(M, …)``; M = N where each takes one.
        features: of the same decisions in the tuned backbone, ``(M, F)``; None in the retriever's space.
        decisions: how many each document takes; None where each takes one.
        index: what the features are searched in; each is compared where None.
        seconds: that encoding the documents and making the index took.
    """

    targets: Tensor
    features: Tensor | None = None
    decisions: Decisions | None = None
    index: Index | None = None
    seconds: float = 0.0

    def nearest(self, features: Tensor, k: int, exclude: Sequence[Collection[int]] | None = None) -> Neighbours:
        """Find the remembered decisions nearest to some features ``(R, F)``, by cosine.

        Args:
            features: in the tuned backbone.
            k: how many for each.
            exclude: for each the decisions it must not see.

        Raises:
            RetrievalError: the corpus was not encoded.
        """
        return self._index.search(unit(features), k, exclude)

    def rows_of(self, documents: Sequence[Collection[int]]) -> Sequence[Collection[int]]:
        """Return the remembered decisions on some documents, each of several sets by itself."""
        return documents if self.decisions is None else [self.decisions.take(sorted(places)) for places in documents]

    @cached_property
    def _index(self) -> Index:
        if self.features is None:
            raise RetrievalError("neighbours are searched in the tuned space, but the corpus was not encoded.")
        return self.index or feature_index(self.features)


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
