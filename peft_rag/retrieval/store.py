"""An index on disk with a life of its own: built, added to, deleted from, searched, verified, compacted."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peft_rag.corpus import Document, corpus_fingerprint
from peft_rag.errors import CorpusError, RetrievalError, ShapeError
from peft_rag.retrieval.adding import Adding, refuse_double_meaning, to_their_end
from peft_rag.retrieval.base import Encoder
from peft_rag.retrieval.manifest import (
    MANIFEST,
    Manifest,
    StoreSettings,
    check_files,
    damaged,
    read_manifest,
    remove_unreferenced,
)
from peft_rag.retrieval.pieces import stored_pieces
from peft_rag.retrieval.shards import Shards
from peft_rag.retrieval.snapshot import Snapshot, excluded_rows
from peft_rag.retrieval.writing import (
    Building,
    commit,
    copy_shards,
    encoder_record,
    matching,
    none_deleted,
    write_shards,
    writing,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Hit:
    """One document found.

    Attributes:
        document: the document.
        score: its similarity, higher is closer.
    """

    document: Document
    score: float

    @property
    def id(self) -> str:
        """The document's id."""
        return self.document.id


class IndexStore:
    """An index folder, opened.

    Every change writes new files beside the old ones and then replaces the manifest, so the folder is the old index
    or the new one at every instant. One process writes at a time; any number read meanwhile, each what it opened
    until it calls `refresh`.
    """

    def __init__(self, folder: Path, snapshot: Snapshot, encoder: Encoder | None = None) -> None:
        """Hold an opened folder; see `open` and `build`."""
        self.folder = folder
        self.snapshot = snapshot
        self._encoder = encoder

    @classmethod
    def open(cls, folder: Path | str, encoder: Encoder | None = None) -> IndexStore:
        """Open an index after checking every file's SHA-256 and a few known queries.

        Args:
            folder: the index.
            encoder: the encoder it was built with; loaded by its recorded name when first needed if None.

        Raises:
            RetrievalError: the folder holds no index, or a damaged one.
            FingerprintError: the encoder is not the one it was built with.
        """
        folder = Path(folder)
        store = cls(folder, Snapshot.open(folder))
        if encoder is not None:
            store._encoder = matching(encoder, store.snapshot.manifest, folder)
        return store

    @classmethod
    def build(
        cls,
        folder: Path | str,
        documents: Iterable[Document],
        encoder: Encoder,
        settings: StoreSettings | None = None,
        progress: str | None = None,
    ) -> IndexStore:
        """Build an index of documents, which are read and encoded a shard at a time.

        If it is interrupted, the same call goes on after the last finished shard whose documents have not changed.

        Args:
            folder: where to build it; it may hold nothing but an unfinished build.
            documents: the documents, in any number.
            encoder: what turns their texts into vectors.
            settings: metric, graph and storage options.
            progress: the title of a progress bar; none without.

        Raises:
            RetrievalError: the folder holds an index or other files, another process writes it, or the disk is full.
            CorpusError: there is no document, one cannot be stored, or two have one id.
        """
        folder, settings = Path(folder), settings or StoreSettings()
        with writing(folder, "build"):
            if (folder / MANIFEST).exists():
                raise RetrievalError(
                    f"'{folder}' holds an index already. Add to it with: peft-rag index add {folder} --corpus …, name "
                    "another folder, or remove this one to build it anew."
                )
            building = Building.resume(folder, encoder_record(encoder), settings)
            given = to_their_end(documents, folder)
            shards = write_shards(folder, 1, given, encoder, settings, progress, building=building)
            if not shards:
                raise CorpusError("there are no documents to index. Give at least one.")
            start = Manifest(0, encoder_record(encoder), encoder.dimension, settings, (), "", None, 0)
            opened = Shards.open(folder, shards, encoder.dimension)
            snapshot = commit(folder, start, shards, none_deleted(len(opened)), progress)
            building.forget()
        return cls(folder, snapshot, encoder)

    @property
    def encoder(self) -> Encoder:
        """The encoder the index was built with, loaded by its name if none was given.

        Raises:
            BackboneError: it cannot be loaded.
            FingerprintError: what is loaded is not what the index was built with.
        """
        if self._encoder is None:
            from peft_rag.retrieval.encoder import SentenceEncoder, recorded_name

            record = self.snapshot.manifest.encoder
            name = recorded_name(record["name"], record["revision"])
            loaded = SentenceEncoder(name, max_length=record["max_length"])
            self._encoder = matching(loaded, self.snapshot.manifest, self.folder)
        return self._encoder

    @property
    def fingerprint(self) -> str:
        """``sha256:<hex>`` over ids, texts and labels in their order: that of a `Corpus` of the same documents."""
        return corpus_fingerprint(self.documents())

    def __len__(self) -> int:
        return len(self.snapshot)

    def __contains__(self, name: object) -> bool:
        """Whether a document of that id is stored, whole or in chunks."""
        return isinstance(name, str) and bool(stored_pieces(self.snapshot.shards, self.snapshot.deleted, [name]))

    def documents(self) -> Iterator[Document]:
        """Yield all documents in the order they were added, reading a few at a time."""
        return self.snapshot.documents()

    def get(self, ids: Sequence[str]) -> list[Document]:
        """Return documents by id.

        Raises:
            RetrievalError: an id is not in the index.
        """
        import numpy as np

        rows = self._rows_of(ids)
        return self.snapshot.shards.documents(np.array([rows[name] for name in ids], dtype=np.int64))

    def refresh(self) -> None:
        """See what other processes have written since, an index built anew in the folder included.

        Raises:
            RetrievalError: the folder holds no index any more, or a damaged one.
            FingerprintError: it was built anew with another encoder than this was opened with.
        """
        if read_manifest(self.folder) != self.snapshot.manifest:
            self.snapshot = self._reopened()

    def search(
        self,
        texts: Sequence[str],
        k: int,
        exclude: Sequence[Collection[str]] | None = None,
        *,
        where: Callable[[Document], bool] | None = None,
        progress: str | None = None,
    ) -> list[list[Hit]]:
        """Return the ``k`` documents nearest to each text, best first; equal scores are ordered by id.

        Args:
            texts: the queries.
            k: how many to return; fewer come back where fewer are allowed.
            exclude: for each query ids it must not find; that of a document which was cut into chunks excludes them
                all. Nothing is filled back in.
            where: which documents may be found at all; asked once for each document, not for each candidate.
            progress: the title of a progress bar; none without.

        Raises:
            ConfigError: ``k`` is below 1.
            ShapeError: ``exclude`` is not as long as ``texts``.
        """
        return self.search_vectors(self.encoder.encode(texts, progress), k, exclude, where=where)

    def search_vectors(
        self,
        queries: NDArray[np.float32],
        k: int,
        exclude: Sequence[Collection[str]] | None = None,
        *,
        where: Callable[[Document], bool] | None = None,
        exact: bool = False,
    ) -> list[list[Hit]]:
        """Search for vectors ``(Q, D)``; ``exact`` passes over the graph; otherwise as `search`."""
        import numpy as np

        snapshot = self.snapshot
        if exclude is not None and len(exclude) != len(queries):
            raise ShapeError(f"exclude must have one entry a query, but has {len(exclude)} for {len(queries)} queries.")
        allowed = None
        if where is not None:
            allowed = np.zeros(len(snapshot.deleted), dtype=bool)
            allowed[snapshot.rows] = [where(document) for document in snapshot.documents()]
        most = min(k, max(1, len(snapshot.rows)))
        found = snapshot.search(queries, most, excluded_rows(snapshot, exclude), allowed=allowed, exact=exact)
        pairs = [found.row(query) for query in range(len(found))]
        rows = np.array(sorted({row for query in pairs for row, _ in query}), dtype=np.int64)
        documents = dict(zip(rows.tolist(), snapshot.shards.documents(rows), strict=True))
        return [[Hit(documents[row], score) for row, score in query] for query in pairs]

    def add(self, documents: Iterable[Document], *, replace: bool = False, progress: str | None = None) -> int:
        """Add documents and return how many; all of them or, if anything fails, none.

        Args:
            documents: the documents, read and encoded a shard at a time.
            replace: whether a document, or the chunks of one, take the place of the one with its id and of all that
                was cut from it; otherwise that is an error.
            progress: the title of a progress bar; none without.

        Raises:
            CorpusError: a document cannot be stored, its id is taken, or two have one id.
            RetrievalError: another process writes the index, or the disk is full.
        """
        import numpy as np

        encoder = self.encoder
        with writing(self.folder, "add"):
            present = self._newest()
            old, settings = present.manifest, present.manifest.settings
            adding = Adding(documents, present, self.folder, replace=replace)
            shards = write_shards(
                self.folder, old.generation + 1, adding, encoder, settings, progress, check=adding.check
            )
            added = sum(shard.rows for shard in shards)
            if added:
                deleted = np.concatenate([present.deleted, none_deleted(added)])
                deleted[adding.replaced] = True
                self.snapshot = commit(self.folder, old, [*old.shards, *shards], deleted, progress)
        return added

    def update(self, documents: Iterable[Document], *, progress: str | None = None) -> int:
        """Add documents, each in place of the one with its id if there is one; otherwise as `add`."""
        return self.add(documents, replace=True, progress=progress)

    def delete(self, ids: Sequence[str]) -> int:
        """Delete documents by id and return in how many pieces they were stored; all or, if anything fails, none.

        The id of a document that was cut into chunks deletes all of them, a chunk's own id that chunk.

        Raises:
            RetrievalError: an id is not in the index, another process writes it, or the disk is full.
        """
        with writing(self.folder, "delete"):
            self.snapshot = self._newest()
            pieces = stored_pieces(self.snapshot.shards, self.snapshot.deleted, ids)
            self._refuse_missing(ids, pieces)
            refuse_double_meaning(self.snapshot, pieces)
            rows = sorted({row for name in ids for row in pieces[name]})
            if rows:
                deleted = self.snapshot.deleted.copy()
                deleted[rows] = True
                manifest = self.snapshot.manifest
                self.snapshot = commit(self.folder, manifest, manifest.shards, deleted, None)
        return len(rows)

    def compact(self, progress: str | None = None) -> None:
        """Write all documents and the graph anew without what was deleted or replaced; nothing is encoded again.

        Raises:
            RetrievalError: another process writes the index, or the disk is full.
        """
        with writing(self.folder, "compact"):
            present = self._newest()
            old = present.manifest
            shards = copy_shards(self.folder, present, progress)
            fresh = Manifest(old.generation, old.encoder, old.dimension, old.settings, (), "", None, 0)
            self.snapshot = commit(self.folder, fresh, shards, none_deleted(len(present)), progress)

    def set_ef(self, ef: int) -> None:
        """Look at ``ef`` candidates for each query from now on; documents, vectors and graph stay as they are.

        Raises:
            ConfigError: ``ef`` is below 1.
            RetrievalError: another process writes the index, or the disk is full.
        """
        with writing(self.folder, "set ef"):
            present = self._newest()
            changed = replace(present.manifest, settings=replace(present.manifest.settings, ef=ef))
            self.snapshot = commit(self.folder, changed, changed.shards, present.deleted, None)

    def info(self) -> dict[str, Any]:
        """Return, as JSON, what the index is: counts, settings, encoder, sizes, versions."""
        manifest = self.snapshot.manifest
        return {
            "folder": str(self.folder),
            "documents": manifest.count,
            "deleted": manifest.rows - manifest.count,
            "generation": manifest.generation,
            "shards": len(manifest.shards),
            "graph": asdict(manifest.graph) if manifest.graph else None,
            "dimension": manifest.dimension,
            **asdict(manifest.settings),
            "encoder": manifest.encoder,
            "bytes": sum(entry["bytes"] for entry in manifest.files.values()),
            "versions": manifest.versions,
        }

    def verify(self) -> dict[str, Any]:
        """Check everything again, and more than `open` does: ids, vectors, and that the encoder still gives them.

        Returns:
            How many files, documents and known queries were checked, and the largest difference of a vector.

        Raises:
            RetrievalError: something is wrong; the message says what.
            FingerprintError: the encoder is not the one it was built with.
        """
        from peft_rag.retrieval.verification import verify

        self.snapshot = Snapshot.open(self.folder)
        return verify(self.folder, self.snapshot, self.encoder)

    def _newest(self) -> Snapshot:
        """Return what the folder holds, with files checked, for a writer that has the lock."""
        snapshot = self.snapshot
        if read_manifest(self.folder) == snapshot.manifest:
            try:
                check_files(self.folder, snapshot.manifest.files)
            except FileNotFoundError as error:
                raise damaged(self.folder, Path(error.filename).name) from None
        else:
            snapshot = self._reopened()
        remove_unreferenced(self.folder, snapshot.manifest.names)
        return snapshot

    def _reopened(self) -> Snapshot:
        """Return what the folder holds now, if its vectors are those of the encoder that this one has loaded."""
        snapshot = Snapshot.open(self.folder)
        if self._encoder is not None:
            matching(self._encoder, snapshot.manifest, self.folder)
        return snapshot

    def _rows_of(self, ids: Sequence[str]) -> dict[str, int]:
        rows = self.snapshot.shards.find(ids, self.snapshot.deleted)
        self._refuse_missing(ids, rows)
        return rows

    def _refuse_missing(self, ids: Sequence[str], found: Collection[str]) -> None:
        missing = [name for name in ids if name not in found]
        if missing:
            more = f" and {len(missing) - 1:,} more" if len(missing) > 1 else ""
            raise RetrievalError(
                f"no document '{missing[0]}'{more} in the index '{self.folder}' ({len(self):,} documents). "
                "Nothing was changed. Check the ids."
            )
