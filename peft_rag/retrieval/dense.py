"""What retrievers over sentence vectors share: encode, search vectors, save, load."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from peft_rag.files import new_folder
from peft_rag.retrieval.base import Encoder, Neighbours, Retriever
from peft_rag.retrieval.recorded import about_index, opened
from peft_rag.retrieval.storage import load_array, save_array, write_manifest
from peft_rag.retrieval.vectors import exact_search

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from peft_rag.corpus import Corpus

FORMAT = 1
VECTORS = "vectors.npy"

Self = TypeVar("Self", bound="DenseRetriever")


class DenseRetriever(Retriever):
    """A retriever that compares sentence vectors by cosine."""

    _vectors: NDArray[np.float32]

    def __init__(self, encoder: Encoder) -> None:
        """Take what turns texts into vectors."""
        self.encoder = encoder

    @property
    def cosine(self) -> bool:
        return True

    @property
    def vectors(self) -> NDArray[np.float32]:
        """The corpus's vectors, ``(N, D)``, in the order of positions.

        Raises:
            RetrievalError: nothing has been indexed.
        """
        self.require_index()
        return self._vectors

    def vectors_of(self, positions: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the vectors ``(P, D)`` of the documents at some positions."""
        return self.vectors[positions]

    def index(self, corpus: Corpus, progress: str | None = None) -> None:
        vectors = self.encoder.encode(corpus.texts, progress)
        self.build(vectors)
        self._vectors = vectors
        self.corpus_fingerprint = corpus.fingerprint

    def find(
        self, texts: Sequence[str], k: int, exclude: Sequence[Collection[int]] | None, progress: str | None
    ) -> Neighbours:
        return self.search_vectors(self.encoder.encode(texts, progress), k, exclude)

    def search_vectors(
        self, queries: NDArray[np.float32], k: int, exclude: Sequence[Collection[int]] | None = None
    ) -> Neighbours:
        """Search for vectors ``(Q, D)`` of length 1 that the encoder gave; otherwise as `search`."""
        return self.search_exactly(queries, k, exclude)

    def search_exactly(
        self, queries: NDArray[np.float32], k: int, exclude: Sequence[Collection[int]] | None = None
    ) -> Neighbours:
        """Search as `search_vectors`, but compare every document."""
        return exact_search(queries, self.vectors, k, exclude)

    def encoder_fingerprint(self) -> str:
        return self.encoder.fingerprint

    def build(self, vectors: NDArray[np.float32]) -> None:
        """Build what searching these vectors needs besides them; nothing here."""

    def write_index(self, folder: Path) -> None:
        """Write what `build` built into a folder being made; nothing here."""

    def read_index(self, folder: Path, vectors: NDArray[np.float32]) -> None:
        """Read what `write_index` wrote, from files whose hashes have been checked; nothing here."""

    def save(self, folder: Path) -> None:
        vectors = self.vectors
        about = {
            **about_index(self, FORMAT, self.encoder),
            "count": int(vectors.shape[0]),
            "dimension": int(vectors.shape[1]),
        }
        with new_folder(folder) as working:
            save_array(working / VECTORS, vectors)
            self.write_index(working)
            write_manifest(working, about)

    @classmethod
    def load(cls: type[Self], folder: Path, encoder: Encoder | None = None) -> Self:
        """Read an index that `save` wrote.

        Args:
            folder: the index.
            encoder: the encoder it was built with; loaded by its recorded name if None.

        Raises:
            RetrievalError: the folder holds no index, a damaged one, or another retriever's.
            FingerprintError: the encoder is not the one it was built with.
        """
        retriever = opened(cls, folder, FORMAT, encoder)
        vectors = load_array(folder / VECTORS)
        retriever.read_index(folder, vectors)
        retriever._vectors = vectors
        return retriever
