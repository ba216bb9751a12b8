import hashlib

import numpy as np
import pytest

from peft_rag.corpus import Corpus, Document
from peft_rag.retrieval.vectors import normalise


class WordEncoder:
    """Sums a fixed random vector for each word: fast, and alike for texts that share words."""

    name = "words"
    dimension = 256

    def __init__(self, seed=0):
        self.seed = seed
        self.encoded = []

    @property
    def fingerprint(self):
        return f"words-{self.seed}"

    def encode(self, texts, progress=None):
        self.encoded.append(len(texts))
        vectors = np.zeros((len(texts), self.dimension), dtype=np.float32)
        for row, text in enumerate(texts):
            vectors[row] = sum(map(self._word, text.lower().split()))
        return normalise(vectors)

    def _word(self, word):
        digest = hashlib.sha256(f"{self.seed} {word}".encode()).digest()
        return np.random.default_rng(int.from_bytes(digest[:8], "big")).normal(size=self.dimension)


@pytest.fixture
def encoder():
    return WordEncoder()


@pytest.fixture
def make_encoder():
    return WordEncoder


@pytest.fixture
def corpus():
    words = ["red", "green", "blue", "cat", "dog", "bird", "runs", "sleeps", "eats"]
    texts = [f"{a} {b} {c}" for a in words[:3] for b in words[3:6] for c in words[6:]]
    return Corpus([Document(f"d{number}", text) for number, text in enumerate(texts)])


@pytest.fixture
def unit_vectors():
    def make(count, dimension=24, seed=0):
        random = np.random.default_rng(seed)
        centres = np.random.default_rng(99).normal(size=(12, dimension))
        points = centres[random.integers(0, 12, count)] + 0.6 * random.normal(size=(count, dimension))
        return normalise(points.astype(np.float32))

    return make
