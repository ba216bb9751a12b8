"""Documents so like a training text that they would give its answer away, found by a threshold of similarity."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peft_rag.corpus import Corpus
from peft_rag.files import sha256_of_json
from peft_rag.retrieval.base import NO_POSITION, Neighbours, Retriever
from peft_rag.retrieval.cache import cached_arrays
from peft_rag.retrieval.wholes import whole_scores

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FORMAT = 2
_FIRST_LOOK = 16


def similar_positions(
    retriever: Retriever, corpus: Corpus, texts: Sequence[str], threshold: float, *, cache_folder: Path, name: str
) -> list[frozenset[int]]:
    """Return for each text every document whose score is at or above a threshold, found once and kept on disk.

    The search is widened for the texts whose farthest neighbour is still too similar, until it is not. Documents in
    chunks are compared as wholes besides (`peft_rag.retrieval.wholes`).

    Args:
        retriever: whose scores are compared; the corpus is indexed if it does not hold it yet.
        corpus: the documents.
        texts: the Q queries.
        threshold: the least score of what counts as similar.
        cache_folder: positions are kept in ``cache_folder/similar``.
        name: what the queries are called in progress bars.

    Raises:
        RetrievalError: the cache cannot be written.
    """
    about = {
        "format": FORMAT,
        "corpus": corpus.fingerprint,
        "texts": sha256_of_json(list(texts)),
        "retriever": retriever.fingerprint_for(corpus.fingerprint),
        "index": retriever.index_state(),
        "threshold": threshold,
    }

    def compute() -> dict[str, NDArray[Any]]:
        import numpy as np

        if retriever.corpus_fingerprint != corpus.fingerprint:
            retriever.index(corpus, progress="corpus")
        title = f"look-alikes of {name}"
        near = _all_above(retriever, texts, threshold, len(corpus), title)
        wholes = whole_scores(retriever, corpus, texts, threshold, title)
        found = [sorted({*parts, *whole}) for parts, whole in zip(near, wholes, strict=True)]
        counts = np.array([len(positions) for positions in found], dtype=np.int64)
        # One more than there are, because an array of nothing cannot be memory-mapped.
        positions = np.array([*(place for row in found for place in row), NO_POSITION], dtype=np.int64)
        return {"counts": counts, "positions": positions}

    folder = cache_folder / "similar" / sha256_of_json(about).removeprefix("sha256:")
    kept = cached_arrays(folder, {**about, "name": name}, compute)
    ends = kept["counts"].cumsum().tolist()
    starts = [0, *ends[:-1]]
    positions = kept["positions"].tolist()
    return [frozenset(positions[start:end]) for start, end in zip(starts, ends, strict=True)]


def with_similar(
    forbidden: Sequence[frozenset[int]],
    retriever: Retriever,
    corpus: Corpus,
    texts: Sequence[str],
    threshold: float,
    *,
    cache_folder: Path,
    name: str,
) -> list[frozenset[int]]:
    """Return what each text must not see, and what `similar_positions` finds for it besides."""
    similar = similar_positions(retriever, corpus, texts, threshold, cache_folder=cache_folder, name=name)
    return [mine | alike for mine, alike in zip(forbidden, similar, strict=True)]


def only_below(found: Neighbours, threshold: float, scores: NDArray[np.float32] | None = None) -> Neighbours:
    """Return neighbours without those at or above a threshold; nothing is filled in for them.

    Args:
        found: ``(Q, K)``.
        threshold: the least score of what is left out.
        scores: what is compared with it, ``(Q, K)``; by default the scores they were found by.
    """
    import numpy as np

    kept = (found.scores if scores is None else scores) < threshold
    order = np.argsort(~kept, axis=1, kind="stable")
    positions = np.where(kept, found.positions, NO_POSITION)
    scores = np.where(kept, found.scores, np.float32(-np.inf))
    return Neighbours(np.take_along_axis(positions, order, 1), np.take_along_axis(scores, order, 1))


def _all_above(
    retriever: Retriever, texts: Sequence[str], threshold: float, documents: int, progress: str
) -> list[list[int]]:
    found: list[list[int]] = [[] for _ in texts]
    pending, k = list(range(len(texts))), _FIRST_LOOK
    while pending:
        near = retriever.search([texts[row] for row in pending], min(k, documents), progress=progress)
        wider = []
        for place, row in enumerate(pending):
            pairs = near.row(place)
            found[row] = [position for position, score in pairs if score >= threshold]
            if len(found[row]) == k < documents:
                wider.append(row)
        pending, k = wider, 4 * k
    return found
