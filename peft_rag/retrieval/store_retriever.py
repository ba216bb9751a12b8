"""An index folder as a retriever, so that training and prediction can use what was built once."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Sequence
from copy import copy
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peft_rag.corpus import Corpus
from peft_rag.errors import ConfigError, RetrievalError
from peft_rag.files import new_folder, sha256_of_json
from peft_rag.retrieval.base import NO_POSITION, Encoder, Neighbours, Retriever
from peft_rag.retrieval.hnsw import no_graph
from peft_rag.retrieval.manifest import read_manifest, write_manifest
from peft_rag.retrieval.store import IndexStore

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class StoreRetriever(Retriever):
    """An index folder of ``peft-rag index build``: its own vectors and graph are searched, nothing is encoded again.

    Positions are places among its documents in the order they were added. The folder is changed through `IndexStore`
    alone: this reads what it held when it was opened.
    """

    name = "store"

    def __init__(self, encoder: Encoder | None = None, *, folder: str = "") -> None:
        """Open an index.

        Args:
            encoder: the encoder it was built with; loaded by its recorded name if None.
            folder: the index; left out, the corpus, where that is an index.

        Raises:
            ConfigError: no folder is named.
            RetrievalError: the folder holds no index, or a damaged one.
            FingerprintError: the encoder is not the one it was built with.
        """
        if not folder:
            raise ConfigError(
                "retriever 'store' searches an index, but none is named. Give one that peft-rag index build made as "
                "--corpus or --retriever.folder."
            )
        if encoder is not None:
            encoder = _cutting_alike(encoder, read_manifest(Path(folder)).encoder["max_length"])
        self.store = IndexStore.open(folder, encoder)
        self.encoder = self.store.encoder
        self._snapshot = self.store.snapshot
        self._rows: NDArray[np.int64] = self._snapshot.rows
        self.corpus_fingerprint = self.store.fingerprint

    @classmethod
    def load(cls, folder: Path, encoder: Encoder | None = None) -> StoreRetriever:
        """Open an index folder, as the constructor does."""
        return cls(encoder, folder=str(folder))

    @property
    def cosine(self) -> bool:
        return self._snapshot.manifest.settings.metric != "l2"

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

    def find(
        self, texts: Sequence[str], k: int, exclude: Sequence[Collection[int]] | None, progress: str | None
    ) -> Neighbours:
        return self.search_vectors(self.encoder.encode(texts, progress), k, exclude)

    def search_vectors(
        self, queries: NDArray[np.float32], k: int, exclude: Sequence[Collection[int]] | None = None
    ) -> Neighbours:
        """Search for vectors ``(Q, D)`` that the encoder gave; otherwise as `search`."""
        return self._search(queries, k, exclude, exact=False)

    def vectors_of(self, positions: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the vectors ``(P, D)`` of the documents at some positions, as they are compared."""
        return self._snapshot.shards.vectors(self._rows[positions])

    def search_exactly(
        self, queries: NDArray[np.float32], k: int, exclude: Sequence[Collection[int]] | None = None
    ) -> Neighbours:
        """Search as `search_vectors`, but compare every document."""
        return self._search(queries, k, exclude, exact=True)

    def with_ef(self, ef: int) -> StoreRetriever:
        """Return the same index, searched by looking at ``ef`` candidates for each query; the folder is as it was.

        Raises:
            RetrievalError: it has no graph.
        """
        if self._snapshot.graph is None:
            raise no_graph(self._snapshot.manifest.settings.exact_below)
        other = copy(self)
        other._snapshot = self._snapshot.with_ef(ef)
        return other

    def _search(
        self, queries: NDArray[np.float32], k: int, exclude: Sequence[Collection[int]] | None, exact: bool
    ) -> Neighbours:
        import numpy as np

        rows = None
        if exclude is not None:
            rows = [frozenset(self._rows[list(positions)].tolist()) if positions else () for positions in exclude]
        found = self._snapshot.search(queries, k, rows, ties_by_id=False, exact=exact)
        places = np.searchsorted(self._rows, found.positions)
        positions = np.where(found.positions == NO_POSITION, NO_POSITION, places)
        return Neighbours(positions.astype(np.int64), found.scores)

    def settings(self) -> dict[str, Any]:
        return asdict(self._snapshot.manifest.settings)

    def fingerprint_for(self, corpus_fingerprint: str) -> str:
        """Return a hash of what is compared and how; how the graph looks for it may change after training.

        What depends on that too, as kept neighbours do, asks for `index_state` besides.
        """
        settings = self._snapshot.manifest.settings
        parts = [self.name, settings.metric, settings.precision, self.encoder_fingerprint(), corpus_fingerprint]
        return sha256_of_json(parts)

    def index_state(self) -> str:
        """Return a hash of the graph, which depends on the order of additions and deletions, and of how it searches."""
        manifest = self._snapshot.manifest
        graph = manifest.files[manifest.graph.file]["sha256"] if manifest.graph else ""
        return sha256_of_json([asdict(manifest.settings), graph])

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


def _cutting_alike(encoder: Encoder, max_length: int | None) -> Encoder:
    """Return a sentence encoder that cuts texts where the index's did, unless it was told where to cut them."""
    from peft_rag.retrieval.encoder import SentenceEncoder

    if max_length is None or not isinstance(encoder, SentenceEncoder) or encoder.max_length is not None:
        return encoder
    return SentenceEncoder(
        encoder.name,
        device=encoder.device,
        batch_size=encoder.batch_size,
        max_length=max_length,
        cache=encoder.cache,
    )
