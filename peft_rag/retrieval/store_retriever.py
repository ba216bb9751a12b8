"""An index folder as a retriever, so that training and prediction can use what was built once."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peft_rag.corpus import Corpus
from peft_rag.errors import RetrievalError
from peft_rag.files import new_folder
from peft_rag.retrieval.base import NO_POSITION, Encoder, Neighbours, Retriever
from peft_rag.retrieval.manifest import write_manifest
from peft_rag.retrieval.store import IndexStore
from peft_rag.retrieval.vectors import check_exclude, check_k

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class StoreRetriever(Retriever):
    """Searches an index folder; positions are places among its documents in the order they were added.

    The folder is changed through `IndexStore` alone: this reads what it held when it was opened.
    """

    name = "store"

    def __init__(self, store: IndexStore) -> None:
        """Take an opened index.

        Args:
            store: the index.
        """
        self.store = store
        self.encoder = store.encoder
        self._snapshot = store.snapshot
        self._rows: NDArray[np.int64] = store.snapshot.rows
        self.corpus_fingerprint = store.fingerprint

    @classmethod
    def load(cls, folder: Path, encoder: Encoder | None = None) -> StoreRetriever:
        """Open an index folder.

        Args:
            folder: the index.
            encoder: the encoder it was built with; loaded by its recorded name if None.

        Raises:
            RetrievalError: the folder holds no index, or a damaged one.
            FingerprintError: the encoder is not the one it was built with.
        """
        return cls(IndexStore.open(folder, encoder))

    def corpus(self) -> Corpus:
        """Return the documents in the order of positions, all in memory."""
        return Corpus(self._snapshot.documents(), self.store.folder.name)

    def index(self, corpus: Corpus, progress: str | None = None) -> None:
        """Accept the corpus the folder was built from, and no other.

        Raises:
            RetrievalError: the corpus is another.
        """
        if corpus.fingerprint != self.corpus_fingerprint:
            raise RetrievalError(
                f"the index '{self.store.folder}' holds {len(self.store):,} documents that are not those of "
                f"'{corpus.name}' ({len(corpus):,}). Build another, or bring it up to date with peft-rag index add."
            )

    def search(
        self,
        texts: Sequence[str],
        k: int,
        exclude: Sequence[Collection[int]] | None = None,
        progress: str | None = None,
    ) -> Neighbours:
        check_k(k)
        check_exclude(exclude, len(texts))
        return self.search_vectors(self.encoder.encode(texts, progress), k, exclude)

    def search_vectors(
        self, queries: NDArray[np.float32], k: int, exclude: Sequence[Collection[int]] | None = None
    ) -> Neighbours:
        """Search for vectors ``(Q, D)`` that the encoder gave; otherwise as `search`."""
        import numpy as np

        rows = None
        if exclude is not None:
            rows = [frozenset(self._rows[list(positions)].tolist()) if positions else () for positions in exclude]
        found = self._snapshot.search(queries, k, rows, ties_by_id=False)
        places = np.searchsorted(self._rows, found.positions)
        positions = np.where(found.positions == NO_POSITION, NO_POSITION, places)
        return Neighbours(positions.astype(np.int64), found.scores)

    def settings(self) -> dict[str, Any]:
        manifest = self._snapshot.manifest
        graph = manifest.graph and manifest.files[manifest.graph.file]["sha256"]
        return {**asdict(manifest.settings), "graph": graph}

    def encoder_fingerprint(self) -> str:
        return self.encoder.fingerprint

    def save(self, folder: Path) -> None:
        """Copy the index into a new folder.

        Raises:
            ArtefactError: the folder already holds something.
            RetrievalError: the index has been changed since it was opened.
        """
        manifest = self._snapshot.manifest
        with new_folder(folder) as working:
            try:
                for name in manifest.names:
                    shutil.copyfile(self.store.folder / name, working / name)
            except FileNotFoundError:
                raise RetrievalError(
                    f"the index '{self.store.folder}' has been changed since it was opened. Open it again to copy it."
                ) from None
            write_manifest(working, manifest)
