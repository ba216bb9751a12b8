"""What a retriever is, and what it returns."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from peft_rag.errors import ConfigError, RetrievalError, ShapeError
from peft_rag.files import sha256_of_json

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from peft_rag.corpus import Corpus

NO_POSITION = -1


@dataclass(frozen=True, eq=False)
class Neighbours:
    """The documents found for each of some queries, nearest first.

    Dims: Q queries, K neighbours asked for.

    Attributes:
        positions: positions in the corpus, int64 ``(Q, K)``; -1 where there is no further neighbour.
        scores: similarities, float32 ``(Q, K)``, higher is closer; ``-inf`` where there is no further
            neighbour.
    """

    positions: NDArray[np.int64]
    scores: NDArray[np.float32]

    def __post_init__(self) -> None:
        if self.positions.ndim != 2 or self.positions.shape != self.scores.shape:
            raise ShapeError(
                f"neighbours need positions and scores of one shape (Q, K), but got {self.positions.shape} "
                f"and {self.scores.shape}."
            )

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def k(self) -> int:
        """How many neighbours were asked for."""
        return int(self.positions.shape[1])

    def row(self, query: int) -> list[tuple[int, float]]:
        """Return one query's neighbours as (position, score), nearest first, without padding."""
        pairs = zip(self.positions[query].tolist(), self.scores[query].tolist(), strict=True)
        return [(position, score) for position, score in pairs if position != NO_POSITION]

    @classmethod
    def of_rows(cls, rows: Sequence[Sequence[tuple[int, float]]]) -> Neighbours:
        """Make neighbours of each query's (position, score), nearest first, padded to the longest row, one at least."""
        import numpy as np

        width = max([1, *map(len, rows)])
        positions = np.full((len(rows), width), NO_POSITION, dtype=np.int64)
        scores = np.full((len(rows), width), -np.inf, dtype=np.float32)
        for query, row in enumerate(rows):
            if row:
                positions[query, : len(row)], scores[query, : len(row)] = zip(*row, strict=True)
        return cls(positions, scores)

    def of(self, queries: Sequence[int]) -> Neighbours:
        """Return the rows of some queries, in the order these are named."""
        chosen = list(queries)
        return Neighbours(self.positions[chosen], self.scores[chosen])

    def head(self, k: int) -> Neighbours:
        """Return the ``k`` nearest of these."""
        return Neighbours(self.positions[:, :k], self.scores[:, :k])

    def at_least(self, score: float) -> Neighbours:
        """Return those of at least this similarity; the places of the others are empty."""
        import numpy as np

        kept = self.scores >= score
        return Neighbours(np.where(kept, self.positions, NO_POSITION), np.where(kept, self.scores, np.float32(-np.inf)))


class Encoder(Protocol):
    """What turns texts into vectors."""

    @property
    def name(self) -> str:
        """The name a user gave."""
        ...

    @property
    def fingerprint(self) -> str:
        """A hash of all that decides the vectors."""
        ...

    @property
    def dimension(self) -> int:
        """The length of a vector."""
        ...

    def encode(self, texts: Sequence[str], progress: str | None = None) -> NDArray[np.float32]:
        """Return vectors of length 1, ``(N, D)``, with a progress bar if it is given a title."""
        ...


class Retriever(ABC):
    """Finds the documents of a corpus that are nearest to a text.

    A retriever of one's own implements `index`, `find`, `settings`, `save` and `load`, and
    `peft_rag.testing.check_retriever` says whether it keeps its promises. Results are deterministic; equal scores are
    ordered by position.

    Attributes:
        name: the name a user picks it by.
        corpus_fingerprint: the fingerprint of the corpus that was indexed, set by `index` and `load`; empty before.
    """

    name: ClassVar[str]
    corpus_fingerprint: str = ""

    @property
    def cosine(self) -> bool:
        """Whether scores are cosines of sentence vectors, so that one threshold means the same anywhere."""
        return False

    @property
    def compares_parts(self) -> bool:
        """Whether a score is that of a part of a document, so that it does not tell how alike two texts are."""
        return False

    @abstractmethod
    def index(self, corpus: Corpus, progress: str | None = None) -> None:
        """Make a corpus searchable, in place of any indexed before."""

    def search(
        self,
        texts: Sequence[str],
        k: int,
        exclude: Sequence[Collection[int]] | None = None,
        progress: str | None = None,
    ) -> Neighbours:
        """Return the ``k`` documents nearest to each text.

        Args:
            texts: the Q queries.
            k: how many to return; fewer come back, padded, where fewer are allowed.
            exclude: for each query the positions it must not see; nothing is filled back in.
            progress: the title of a progress bar; none without.

        Raises:
            RetrievalError: nothing has been indexed.
            ConfigError: ``k`` is below 1.
            ShapeError: ``exclude`` is not as long as ``texts``.
        """
        check_k(k)
        check_exclude(exclude, len(texts))
        self.require_index()
        return self.find(texts, k, exclude, progress)

    @abstractmethod
    def find(
        self, texts: Sequence[str], k: int, exclude: Sequence[Collection[int]] | None, progress: str | None
    ) -> Neighbours:
        """Do what `search` promises, which has checked its arguments and that a corpus is indexed."""

    def require_index(self) -> None:
        """Raise `RetrievalError` unless a corpus has been indexed, or an index loaded."""
        if not self.corpus_fingerprint:
            raise RetrievalError(f"the retriever '{self.name}' has no index yet. Call index(corpus) or load(folder).")

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """Return, as JSON, the options that decide the results."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write the index into a new folder.

        Raises:
            RetrievalError: nothing has been indexed.
            ArtefactError: the folder already holds something.
        """

    @classmethod
    @abstractmethod
    def load(cls, folder: Path) -> Retriever:
        """Read an index that `save` wrote.

        Raises:
            RetrievalError: the folder holds no index, or a damaged one.
            FingerprintError: the encoder is not the one it was built with.
        """

    def encoder_fingerprint(self) -> str:
        """Return the fingerprint of the encoder; empty for a retriever that has none."""
        return ""

    def index_state(self) -> str:
        """Return what tells this index from others of the same corpus and settings; empty where those decide all."""
        return ""

    def fingerprint_for(self, corpus_fingerprint: str) -> str:
        """Return a hash of all that decides the results over a corpus: settings, encoder, corpus."""
        parts = [self.name, self.settings(), self.encoder_fingerprint(), corpus_fingerprint]
        return sha256_of_json(parts)

    @property
    def fingerprint(self) -> str:
        """The hash of settings, encoder and the corpus indexed."""
        return self.fingerprint_for(self.corpus_fingerprint)


def check_k(k: int) -> None:
    """Raise `ConfigError` unless there is at least one neighbour to find."""
    if k < 1:
        raise ConfigError(f"k must be at least 1, but is {k}.")


def check_exclude(exclude: Sequence[Collection[int]] | None, queries: int) -> None:
    """Raise `ShapeError` unless there is one set of excluded positions a query."""
    if exclude is not None and len(exclude) != queries:
        raise ShapeError(f"exclude must have one entry a query, but has {len(exclude)} for {queries} queries.")
