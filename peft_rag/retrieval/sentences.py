"""Exact search by sentences: a document is as near as the nearest sentence of it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peft_rag.files import new_folder
from peft_rag.retrieval.base import Encoder, Neighbours, Retriever
from peft_rag.retrieval.chunks import sentence_spans
from peft_rag.retrieval.recorded import about_index, opened
from peft_rag.retrieval.storage import load_array, save_array, write_manifest
from peft_rag.retrieval.vectors import candidates, check_finite, empty_neighbours, fill_nearest, pair_scores

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from peft_rag.corpus import Corpus

FORMAT = 1
VECTORS, STARTS = "vectors.npy", "starts.npy"
_CELLS = 1 << 24


class SentencesRetriever(Retriever):
    """Cosine similarity to a document's nearest sentence, every sentence compared.

    score(d) = max over the sentences s of d of cos(q, s). One vector of a long text blurs what its sentences say, and
    holds nothing of what lies beyond the encoder's window; what is returned, and read, is the whole document. The index
    holds a vector a sentence; right for up to some 100,000 sentences.

    Source: Dai and Callan 2019 (MaxP), arXiv:1905.09217.
    """

    name = "sentences"

    _vectors: NDArray[np.float32]
    _starts: NDArray[np.int64]

    def __init__(self, encoder: Encoder) -> None:
        """Take the encoder.

        Args:
            encoder: what turns texts into vectors.
        """
        self.encoder = encoder

    @property
    def cosine(self) -> bool:
        return True

    @property
    def compares_parts(self) -> bool:
        return True

    def settings(self) -> dict[str, Any]:
        return {}

    def encoder_fingerprint(self) -> str:
        return self.encoder.fingerprint

    def index(self, corpus: Corpus, progress: str | None = None) -> None:
        import numpy as np

        sentences = [_sentences(text) for text in corpus.texts]
        vectors = self.encoder.encode([one for inside in sentences for one in inside], progress)
        check_finite(vectors, "indexed")
        self._vectors = vectors
        self._starts = np.cumsum([0, *map(len, sentences)], dtype=np.int64)
        self.corpus_fingerprint = corpus.fingerprint

    def find(
        self, texts: Sequence[str], k: int, exclude: Sequence[Collection[int]] | None, progress: str | None
    ) -> Neighbours:
        import numpy as np

        queries = self.encoder.encode(texts, progress)
        check_finite(queries, "query")
        found = empty_neighbours(len(queries), k)
        if len(self._starts) == 1:
            return found
        step = max(1, _CELLS // len(self._vectors))
        for start in range(0, len(queries), step):
            block = queries[start : start + step]
            forbidden = exclude[start : start + step] if exclude is not None else None
            nearest = np.maximum.reduceat(block @ self._vectors.T, self._starts[:-1], axis=1)
            rows, columns = candidates(block, nearest, k, forbidden)
            fill_nearest(found, start, rows, columns, self._scores(block, rows, columns))
        return found

    def _scores(
        self, queries: NDArray[np.float32], rows: NDArray[np.int64], columns: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """Return the cosine of each query to the nearest sentence of each document, summed in float64."""
        import numpy as np

        if not len(rows):
            return np.empty(0, dtype=np.float32)
        counts = self._starts[columns + 1] - self._starts[columns]
        firsts = np.cumsum(counts) - counts
        sentences = np.arange(counts.sum()) - np.repeat(firsts - self._starts[columns], counts)
        scores = pair_scores(queries, self._vectors, np.repeat(rows, counts), sentences)
        nearest: NDArray[np.float32] = np.maximum.reduceat(scores, firsts)
        return nearest

    def save(self, folder: Path) -> None:
        self.require_index()
        about = {
            **about_index(self, FORMAT, self.encoder),
            "count": len(self._starts) - 1,
            "sentences": len(self._vectors),
        }
        with new_folder(folder) as working:
            save_array(working / VECTORS, self._vectors)
            save_array(working / STARTS, self._starts)
            write_manifest(working, about)

    @classmethod
    def load(cls, folder: Path, encoder: Encoder | None = None) -> SentencesRetriever:
        """Read an index that `save` wrote.

        Args:
            folder: the index.
            encoder: the encoder it was built with; loaded by its recorded name if None.

        Raises:
            RetrievalError: the folder holds no index, a damaged one, or another retriever's.
            FingerprintError: the encoder is not the one it was built with.
        """
        retriever = opened(cls, folder, FORMAT, encoder)
        retriever._vectors = load_array(folder / VECTORS)
        retriever._starts = load_array(folder / STARTS)
        return retriever


def _sentences(text: str) -> list[str]:
    """Return the sentences of a text, or the text itself where it has none."""
    return [text[start:end] for start, end in sentence_spans(text)] or [text]
