"""Real sentences and their vectors: of the demo corpus, first each whole, then without its end, then its beginning."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
from numpy.typing import NDArray

from peft_rag.config import DEFAULT_MODEL
from peft_rag.corpus import Document
from peft_rag.demo import DEMO_DATA, demo_records
from peft_rag.places import cache_folder
from peft_rag.retrieval.base import Encoder
from peft_rag.retrieval.chunks import sentence_spans
from peft_rag.retrieval.encoder import SentenceEncoder

_SHORTEST = 20
_SAMPLE = 1024


class KnownVectors:
    """An encoder that looks up what the real one gave, so that all but encoding is timed."""

    def __init__(self, encoder: Encoder | SimpleNamespace, texts: Sequence[str], vectors: NDArray[np.float32]) -> None:
        """Remember the vectors ``(N, D)`` of N distinct texts."""
        self.name, self.fingerprint, self.dimension = encoder.name, encoder.fingerprint, encoder.dimension
        self._rows = {text: row for row, text in enumerate(texts)}
        self._vectors = vectors

    def encode(self, texts: Sequence[str], progress: str | None = None) -> NDArray[np.float32]:
        """Return the vectors of texts that are known."""
        return np.asarray(self._vectors[[self._rows[text] for text in texts]])


@dataclass(frozen=True)
class Data:
    """What is indexed and what is asked.

    Attributes:
        documents: N documents.
        vectors: of their texts, ``(N, D)``, of length 1.
        queries: vectors ``(Q, D)`` of sentences cut at both ends, none of them a document.
        encoder: knows the vectors.
        encoding_seconds: of one document, by the real encoder, measured on a sample.
    """

    documents: list[Document]
    vectors: NDArray[np.float32]
    queries: NDArray[np.float32]
    encoder: KnownVectors
    encoding_seconds: float


def load(documents: int, queries: int) -> Data:
    """Return sentences of the demo corpus, encoded once and then kept in the cache.

    Args:
        documents: how many; there are some 110,000, the first 36,000 of them whole sentences.
        queries: how many.
    """
    sentences = _sentences()
    texts = list(
        dict.fromkeys(
            [*sentences, *(_part(one, 0, 0.7) for one in sentences), *(_part(one, 0.3, 1) for one in sentences)]
        )
    )
    chosen = texts[:documents]
    held = set(texts)
    asked = [part for one in sentences if (part := _part(one, 0.15, 0.85)) not in held]
    asked = random.Random(1).sample(asked, queries)
    encoder = SentenceEncoder(DEFAULT_MODEL, cache=cache_folder())
    vectors, wanted = encoder.encode(chosen, "documents"), encoder.encode(asked, "queries")
    sample = chosen[:: max(1, len(chosen) // _SAMPLE)][:_SAMPLE]
    fresh = SentenceEncoder(DEFAULT_MODEL)
    fresh.encode(sample[:64])
    begun = time.perf_counter()
    fresh.encode(sample)
    seconds = (time.perf_counter() - begun) / len(sample)
    known = KnownVectors(encoder, [*chosen, *asked], np.concatenate([vectors, wanted]))
    named = [Document(f"s{number}", text) for number, text in enumerate(chosen)]
    return Data(named, np.asarray(vectors), np.asarray(wanted), known, seconds)


def _sentences() -> list[str]:
    """Return the distinct sentences of every split of the demo corpus."""
    texts = (
        record.fields["text"] for split in DEMO_DATA["wiki-topics"] for record in demo_records("wiki-topics", split)
    )
    spans = ((text, start, end) for text in texts for start, end in sentence_spans(text))
    return list(dict.fromkeys(text[start:end] for text, start, end in spans if end - start >= _SHORTEST))


def _part(sentence: str, start: float, end: float) -> str:
    """Return the words of a sentence from one share of it to another; one word at least."""
    words = sentence.split()
    first = int(start * len(words))
    return " ".join(words[first : max(first + 1, math.ceil(end * len(words)))])
