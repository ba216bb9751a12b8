"""Which queries stand in the corpus already, word for word or nearly, so that scores can be split by it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from peft_rag.corpus import Corpus, text_key
from peft_rag.errors import ConfigError, ShapeError
from peft_rag.retrieval.base import Encoder
from peft_rag.retrieval.neighbours import Query
from peft_rag.retrieval.vectors import exact_search

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
    encoder: Encoder | None = None,
    *,
    threshold: float = 0.95,
    same_data: bool = False,
    progress: str | None = None,
) -> OverlapReport:
    """Find queries that the corpus holds.

    Exact duplicates share `peft_rag.corpus.text_key`; all of them are listed. Near duplicates have a cosine of at least
    ``threshold`` under the encoder; of each query's, the nearest 10 are listed besides the exact ones.

    Args:
        queries: the Q queries.
        corpus: the documents.
        encoder: compares texts that are not the same; without it only exact duplicates are looked for.
        threshold: the least cosine of near duplicates, in (0, 1].
        same_data: whether the queries are documents of the corpus; a document of a query's own id is then none.
        progress: the title of a progress bar; none without.

    Raises:
        ConfigError: ``threshold`` is out of range.
    """
    if not 0 < threshold <= 1:
        raise ConfigError(f"the threshold of near duplicates must be in (0, 1], but is {threshold!r}.")
    exact = _exact(queries, corpus, same_data)
    found = {row: [Overlap(row, position, EXACT, 1.0) for position in exact[row]] for row in range(len(queries))}
    if encoder is not None and len(queries):
        own = {document.id: position for position, document in enumerate(corpus)} if same_data else {}
        exclude = [{*exact[row], own.get(query.id, -1)} - {-1} for row, query in enumerate(queries)]
        titles = [f"{progress}, {part}" if progress else None for part in ("corpus", "queries")]
        vectors = encoder.encode(corpus.texts, titles[0])
        near = exact_search(encoder.encode([query.text for query in queries], titles[1]), vectors, _MOST_NEAR, exclude)
        for row in range(len(queries)):
            found[row] += [Overlap(row, at, NEAR, score) for at, score in near.row(row) if score >= threshold]
    pairs = tuple(pair for row in range(len(queries)) for pair in found[row])
    return OverlapReport(len(queries), len(corpus), None if encoder is None else threshold, pairs)


def split_scores(
    score: Callable[[NDArray[Any], NDArray[Any]], float],
    predictions: NDArray[Any],
    references: NDArray[Any],
    overlapping: NDArray[np.bool_],
) -> dict[str, float | None]:
    """Take a score on all examples, on those that overlap the corpus, and on those that do not.

    Args:
        score: a score of predictions and references, e.g. `peft_rag.evaluation.scores.accuracy`.
        predictions: one a query, ``(Q, …)``.
        references: one a query, ``(Q, …)``.
        overlapping: what `OverlapReport.mask` gave, ``(Q,)``.

    Returns:
        The scores ``all``, ``overlapping`` and ``clean``; None where there is no example.

    Raises:
        ShapeError: they are not as many.
    """
    if not len(predictions) == len(references) == len(overlapping):
        raise ShapeError(
            f"predictions, references and mask must be as many, but are {len(predictions)}, {len(references)} "
            f"and {len(overlapping)}."
        )
    parts = {"all": overlapping | ~overlapping, "overlapping": overlapping, "clean": ~overlapping}
    return {
        name: float(score(predictions[part], references[part])) if part.any() else None for name, part in parts.items()
    }


def _exact(queries: Sequence[Query], corpus: Corpus, same_data: bool) -> list[list[int]]:
    """Return for each query the positions of documents of its normalised text."""
    positions: dict[str, list[int]] = defaultdict(list)
    for position, document in enumerate(corpus):
        positions[text_key(document.text)].append(position)
    return [
        [at for at in positions.get(text_key(query.text), []) if not (same_data and corpus[at].id == query.id)]
        for query in queries
    ]
