"""Texts compared as wholes where a retriever compares parts of them: chunks of a document, or its sentences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from peft_rag.corpus import Corpus
from peft_rag.retrieval.standing import in_pieces, put_together

if TYPE_CHECKING:
    from peft_rag.retrieval.base import Encoder, Retriever

_CELLS = 1 << 24


def whole_scores(
    retriever: Retriever, corpus: Corpus, texts: Sequence[str], threshold: float, progress: str
) -> list[dict[int, float]]:
    """Return for each text the documents that are like it as wholes, by cosine of the retriever's encoder.

    A chunk of a text is little like the text, however the two are compared, and so is its best sentence. Here a
    document in chunks is put together again, and each of its chunks stands for it; of a retriever that compares parts
    of any document, all are compared.

    Args:
        retriever: whose encoder compares; one that has none compares nothing here.
        corpus: the documents.
        texts: the Q texts.
        threshold: the least cosine that counts.
        progress: the title of a progress bar; none if empty.

    Returns:
        The cosine by position, for each of the Q texts; nothing where the retriever compares wholes already.
    """
    import numpy as np

    pieces = list(in_pieces(corpus).values())
    wholes = [(put_together([corpus[place] for place in places]), places) for places in pieces]
    if retriever.compares_parts:
        cut = {place for places in pieces for place in places}
        wholes += [(one.text, [place]) for place, one in enumerate(corpus) if place not in cut]
    found: list[dict[int, float]] = [{} for _ in texts]
    if not wholes or not texts or not hasattr(retriever, "encoder"):
        return found
    encoder: Encoder = retriever.encoder  # type: ignore[attr-defined]
    vectors = encoder.encode([text for text, _ in wholes], progress or None)
    queries = encoder.encode(list(texts))
    step = max(1, _CELLS // len(wholes))
    for start in range(0, len(texts), step):
        scores = queries[start : start + step] @ vectors.T
        for row, one in zip(*(places.tolist() for places in np.nonzero(scores >= threshold)), strict=True):
            found[start + row] |= dict.fromkeys(wholes[one][1], float(scores[row, one]))
    return found
