"""Which queries stand in the corpus already, word for word or nearly, so that scores can be split by it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from peft_rag.corpus import Corpus
from peft_rag.errors import ConfigError
from peft_rag.places import cache_folder as default_folder
from peft_rag.retrieval.base import Retriever
from peft_rag.retrieval.neighbours import Query, precompute_neighbours
from peft_rag.retrieval.standing import Texts, by_id
from peft_rag.retrieval.wholes import whole_scores

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

EXACT, NEAR = "exact", "near"
_MOST_NEAR = 10


@dataclass(frozen=True)
class Overlap:
    """A query and a document that are the same text, or nearly.

    Attributes:
        query: number of the query.
        position: position of the document.
        kind: ``exact`` if they differ at most in case, white space and Unicode form, else ``near``.
        similarity: their similarity; 1 for an exact duplicate.
    """

    query: int
    position: int
    kind: str
    similarity: float


@dataclass(frozen=True)
class OverlapReport:
    """The overlap of queries and corpus.

    Attributes:
        queries: how many queries were compared.
        documents: with how many documents.
        threshold: from which similarity on a pair is a near duplicate; None if only exact ones were looked for.
        pairs: the duplicates, by query, exact ones first, then by falling similarity.
    """

    queries: int
    documents: int
    threshold: float | None
    pairs: tuple[Overlap, ...]

    def count(self, kind: str) -> int:
        """Return how many queries have a duplicate of a kind, ``exact`` or ``near``."""
        return len({pair.query for pair in self.pairs if pair.kind == kind})

    def mask(self, kind: str | None = None) -> NDArray[np.bool_]:
        """Return which queries have a duplicate, ``(Q,)``; of one kind only, or of any if None."""
        import numpy as np

        overlapping = np.zeros(self.queries, dtype=bool)
        overlapping[[pair.query for pair in self.pairs if kind in (None, pair.kind)]] = True
        return overlapping


def find_overlap(
    queries: Sequence[Query],
    corpus: Corpus,
    retriever: Retriever | None = None,
    *,
    cache_folder: Path | None = None,
    threshold: float = 0.95,
    same_data: bool = False,
) -> OverlapReport:
    """Find queries that the corpus holds.

    Exact duplicates share `peft_rag.corpus.text_key`; all of them are listed, of a document in chunks every chunk. Near
    duplicates score at least the threshold by the retriever; of each query's, the nearest 10 are listed besides the
    exact ones. They are kept on disk, as the neighbours of a run are, and so is what the retriever's encoder gives.

    Args:
        queries: the Q queries.
        corpus: the documents.
        retriever: compares texts that are not the same, by cosine; without it only exact duplicates are looked for.
        cache_folder: where neighbours are kept; the folder of `peft_rag.retrieval.cache.cache_folder` if None.
        threshold: the least score of near duplicates, in (0, 1].
        same_data: whether the queries are documents of the corpus; a document of a query's own id is then none.

    Raises:
        ConfigError: ``threshold`` is out of range.
    """
    if not 0 < threshold <= 1:
        raise ConfigError(f"the threshold of near duplicates must be in (0, 1], but is {threshold!r}.")
    exact = _exact(queries, corpus, same_data)
    found = {row: [Overlap(row, position, EXACT, 1.0) for position in exact[row]] for row in range(len(queries))}
    if retriever is not None and len(queries):
        near = precompute_neighbours(
            retriever,
            corpus,
            [replace(query, group="") for query in queries],
            min(_MOST_NEAR, len(corpus)),
            cache_folder=cache_folder or default_folder(),
            name="overlap",
            same_data=same_data,
            exclude_duplicates=True,
        )
        wholes = whole_scores(retriever, corpus, [query.text for query in queries], threshold, "overlap")
        own = by_id(corpus) if same_data else {}
        for row, query in enumerate(queries):
            scores = ({} if retriever.compares_parts else dict(near.row(row))) | wholes[row]
            known = {*exact[row], *own.get(query.id, ())}
            ranked = sorted(scores.items(), key=lambda pair: (-pair[1], pair[0]))
            found[row] += [Overlap(row, at, NEAR, one) for at, one in ranked if one >= threshold and at not in known]
    pairs = tuple(pair for row in range(len(queries)) for pair in found[row])
    return OverlapReport(len(queries), len(corpus), None if retriever is None else threshold, pairs)


def _exact(queries: Sequence[Query], corpus: Corpus, same_data: bool) -> list[list[int]]:
    """Return for each query the positions of documents of its normalised text, or of the chunks of one."""
    texts, own = Texts(corpus), by_id(corpus) if same_data else {}
    nothing: frozenset[int] = frozenset()
    return [sorted(texts.places(query.text) - own.get(query.id, nothing)) for query in queries]
