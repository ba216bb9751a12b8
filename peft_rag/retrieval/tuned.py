"""Search by query vectors other than the retriever's own encoder gives, among the vectors that are stored."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from peft_rag.errors import ConfigError
from peft_rag.retrieval.base import NO_POSITION, Encoder, Neighbours, Retriever
from peft_rag.retrieval.leaks import only_below
from peft_rag.retrieval.vectors import pair_scores

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from peft_rag.corpus import Corpus


@runtime_checkable
class VectorRetriever(Protocol):
    """A retriever that gives its stored vectors, and is searched by any vector of their space."""

    encoder: Encoder
    corpus_fingerprint: str

    def index(self, corpus: Corpus, progress: str | None = None) -> None:
        """Make a corpus searchable."""
        ...

    def search_vectors(
        self, queries: NDArray[np.float32], k: int, exclude: Sequence[Collection[int]] | None = None
    ) -> Neighbours:
        """Return the ``k`` documents nearest to each of the vectors ``(Q, D)``."""
        ...

    def vectors_of(self, positions: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the vectors ``(P, D)`` of documents as they are compared."""
        ...


class QueryEncoder(Protocol):
    """Turns texts into the vectors that are searched with."""

    def encode(self, texts: Sequence[str], progress: str | None = None) -> NDArray[np.float32]:
        """Return vectors of length 1, ``(N, D)``."""
        ...


def as_vector_retriever(retriever: Retriever, name: str) -> VectorRetriever:
    """Return a retriever whose queries can be tuned.

    Raises:
        ConfigError: its scores are no cosines of sentence vectors, or it keeps its vectors to itself.
    """
    if not retriever.cosine or not isinstance(retriever, VectorRetriever):
        why = "keeps its vectors to itself" if retriever.cosine else "does not compare sentence vectors by cosine"
        raise ConfigError(
            f"query_method tunes the vectors that queries are searched with, but retriever '{name}' {why}. Pick "
            "--retriever hnsw or exact, or an index folder built by cosine (peft-rag index build)."
        )
    return retriever


def indexed(retriever: VectorRetriever, corpus: Corpus) -> VectorRetriever:
    """Return a retriever once it holds a corpus."""
    if retriever.corpus_fingerprint != corpus.fingerprint:
        retriever.index(corpus, progress="corpus")
    return retriever


def tuned_neighbours(
    retriever: VectorRetriever,
    queries: QueryEncoder,
    corpus: Corpus,
    texts: Sequence[str],
    k: int,
    forbidden: Sequence[Collection[int]],
    *,
    leak_threshold: float = 0.0,
    name: str,
) -> Neighbours:
    """Search the unchanged index by tuned query vectors. Nothing is kept on disk: another tower finds others.

    What counts as a text's look-alike is told by the retriever's own encoder, whatever the queries have learned.

    Args:
        retriever: holds the documents' vectors.
        queries: what turns texts into query vectors.
        corpus: the documents.
        texts: the Q queries.
        k: neighbours wanted of each.
        forbidden: for each query the positions it must not see.
        leak_threshold: if above 0, documents of at least that cosine by the retriever's own encoder are left out too.
        name: what the queries are called in progress bars; no bar if empty.
    """
    vectors = queries.encode(texts, f"queries of {name}" if name else None)
    found = indexed(retriever, corpus).search_vectors(vectors, k, forbidden)
    return only_below(found, leak_threshold, _own_scores(retriever, texts, found)) if leak_threshold else found


def _own_scores(retriever: VectorRetriever, texts: Sequence[str], found: Neighbours) -> NDArray[np.float32]:
    """Return the cosines by the retriever's own encoder of what was found by another, ``(Q, K)``."""
    import numpy as np

    scores = np.full(found.scores.shape, -np.inf, dtype=np.float32)
    rows, places = np.nonzero(found.positions != NO_POSITION)
    vectors = retriever.vectors_of(found.positions[rows, places])
    scores[rows, places] = pair_scores(retriever.encoder.encode(texts), vectors, rows, np.arange(len(rows)))
    return scores
