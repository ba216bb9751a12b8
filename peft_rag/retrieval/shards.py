"""Documents and their vectors on disk: Arrow streams and ``.npy`` files, read as memory maps."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peft_rag.corpus import Document
from peft_rag.errors import CorpusError, RetrievalError, ShapeError
from peft_rag.retrieval.chunks import CHUNK_NUMBER
from peft_rag.retrieval.manifest import ShardEntry, write_durably
from peft_rag.retrieval.precision import unpack
from peft_rag.retrieval.vectors import check_finite, normalise

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from peft_rag.retrieval.base import Encoder

LONGEST_TEXT = 1_000_000


class Shard:
    """One run of documents, opened; its files' hashes have been checked.

    Attributes:
        entry: its name and size.
        start: the row number of its first document.
        stored: the vectors as `precision.pack` left them, memory-mapped.
        keys: hashes of the ids, uint64 ``(rows,)``, memory-mapped.
        table: the documents as an Arrow table, memory-mapped.
    """

    def __init__(self, folder: Path, entry: ShardEntry, start: int) -> None:
        """Map the files at once, so that they stay readable when a writer removes them."""
        import numpy as np
        import pyarrow
        import pyarrow.ipc

        documents, vectors, keys = entry.files
        self.entry = entry
        self.start = start
        self.stored: NDArray[Any] = np.load(folder / vectors, mmap_mode="r", allow_pickle=False)
        self.keys: NDArray[np.uint64] = np.load(folder / keys, mmap_mode="r", allow_pickle=False)
        with pyarrow.memory_map(str(folder / documents)) as file:
            self.table: Any = pyarrow.ipc.open_stream(file).read_all()
        if len(self.stored) != entry.rows or len(self.keys) != entry.rows:
            raise RetrievalError(
                f"'{folder / entry.name}' holds {len(self.stored):,} vectors for {entry.rows:,} documents. "
                "Build the index anew."
            )

    @property
    def stop(self) -> int:
        """The row number after its last document."""
        return self.start + self.entry.rows

    @cached_property
    def stems(self) -> Any:
        """The ids without what a chunk's adds to its document's, as Arrow strings; None where none looks like that."""
        import pyarrow.compute

        ids = self.table.column("id")
        if not pyarrow.compute.any(pyarrow.compute.match_substring_regex(ids, CHUNK_NUMBER)).as_py():
            return None
        return pyarrow.compute.replace_substring_regex(ids, pattern=CHUNK_NUMBER, replacement="")

    def ids(self, rows: NDArray[np.int64]) -> list[str]:
        """Return the ids of rows, counted from the shard's first."""
        found: list[str] = self.table.column("id").take(rows).to_pylist()
        return found

    def documents(self, rows: NDArray[np.int64]) -> list[Document]:
        """Return the documents of rows, counted from the shard's first."""
        return [_from_row(row) for row in self.table.take(rows).to_pylist()]


class Shards:
    """All shards of an index, addressed by row numbers that run through them."""

    def __init__(self, shards: Sequence[Shard], dimension: int) -> None:
        """Hold shards in the order of their rows."""
        import numpy as np

        self.shards = tuple(shards)
        self.dimension = dimension
        self.starts = np.array([shard.start for shard in shards], dtype=np.int64)

    @classmethod
    def open(cls, folder: Path, entries: Sequence[ShardEntry], dimension: int) -> Shards:
        """Map the files of several shards."""
        shards, start = [], 0
        for entry in entries:
            shards.append(Shard(folder, entry, start))
            start += entry.rows
        return cls(shards, dimension)

    def __len__(self) -> int:
        return self.shards[-1].stop if self.shards else 0

    def vectors(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the vectors ``(R, D)`` of rows."""
        import numpy as np

        found = np.empty((len(rows), self.dimension), dtype=np.float32)
        for shard, places in self._places(rows):
            found[places] = unpack(shard.stored[rows[places] - shard.start])
        return found

    def stored(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        """Return the vectors of rows as they are stored; at least one row."""
        import numpy as np

        first = self.shards[0].stored
        found = np.empty((len(rows), first.shape[1]), dtype=first.dtype)
        for shard, places in self._places(rows):
            found[places] = shard.stored[rows[places] - shard.start]
        return found

    def blocks(self, start: int, size: int) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Yield, from a row on, first row and vectors of blocks of at most ``size`` rows."""
        for shard in self.shards:
            for first in range(max(start, shard.start), shard.stop, size):
                here = first - shard.start
                yield first, unpack(shard.stored[here : min(here + size, shard.entry.rows)])

    def ids(self, rows: NDArray[np.int64]) -> list[str]:
        """Return the ids of rows."""
        found = [""] * len(rows)
        for shard, places in self._places(rows):
            for place, name in zip(places, shard.ids(rows[places] - shard.start), strict=True):
                found[place] = name
        return found

    def documents(self, rows: NDArray[np.int64]) -> list[Document]:
        """Return the documents of rows."""
        found: dict[int, Document] = {}
        for shard, places in self._places(rows):
            found.update(zip(places.tolist(), shard.documents(rows[places] - shard.start), strict=True))
        return [found[place] for place in range(len(rows))]

    def find(self, ids: Collection[str], deleted: NDArray[np.bool_] | None = None) -> dict[str, int]:
        """Return the rows of those ids that are stored, and not deleted."""
        import numpy as np

        wanted = set(ids)
        keys = np.unique(id_keys(wanted))
        found: dict[str, int] = {}
        for shard in self.shards:
            rows = np.flatnonzero(np.isin(shard.keys, keys))
            if deleted is not None:
                rows = rows[~deleted[shard.start + rows]]
            if len(rows):
                named = zip(shard.ids(rows), rows.tolist(), strict=True)
                found.update((name, shard.start + row) for name, row in named if name in wanted)
        return found

    def _places(self, rows: NDArray[np.int64]) -> Iterator[tuple[Shard, NDArray[np.int64]]]:
        """Yield each shard that holds some of the rows, with their places among them."""
        import numpy as np

        owner = np.searchsorted(self.starts, rows, side="right") - 1
        for number in np.unique(owner).tolist():
            yield self.shards[number], np.flatnonzero(owner == number)


def id_keys(ids: Iterable[str]) -> NDArray[np.uint64]:
    """Return a 64-bit hash of each id."""
    import numpy as np

    digests = b"".join(hashlib.blake2b(name.encode(), digest_size=8).digest() for name in ids)
    return np.frombuffer(digests, dtype=np.uint64)


def batches(documents: Iterable[Document], size: int) -> Iterator[list[Document]]:
    """Yield checked documents in lists of ``size``, the last one shorter.

    Raises:
        CorpusError: a document has no text, too long a one, or one that is no Unicode; or two of one list have
            one id.
    """
    stream, before = iter(documents), 0
    while batch := list(islice(stream, size)):
        seen: dict[str, int] = {}
        for place, document in enumerate(batch):
            check_document(document)
            first = seen.setdefault(document.id, place)
            if first != place:
                raise twice(document.id, before + first, before + place)
        yield batch
        before += len(batch)


def twice(name: str, first: int, second: int) -> CorpusError:
    """Say that two of the documents given, at those places counted from 0, have one id."""
    return CorpusError(
        f"documents number {first + 1:,} and {second + 1:,} of those given have one id, '{name}'. Make the ids unique, "
        "or name another field with --id-field."
    )


def check_document(document: Document) -> None:
    """Raise `CorpusError` if a document cannot be stored."""
    if not document.id:
        raise CorpusError("a document has an empty id. Give every document a name of its own.")
    if not document.text.strip():
        raise CorpusError(f"document '{document.id}': the text is empty. Remove the document or give it a text.")
    if len(document.text) > LONGEST_TEXT:
        raise CorpusError(
            f"document '{document.id}': the text has {len(document.text):,} characters; an encoder reads a few "
            f"thousand, and an index takes at most {LONGEST_TEXT:,}. Cut it into several documents of one group."
        )
    written = json.dumps(dict(document.metadata), ensure_ascii=False, default=str)
    try:
        for text in (document.id, document.text, document.group, *document.labels, written):
            text.encode()
    except UnicodeEncodeError as error:
        raise CorpusError(
            f"document {document.id!r}: holds half of a surrogate pair (\\u{ord(error.object[error.start]):04x}), "
            "which is no Unicode text. Repair or remove the document."
        ) from None


def documents_digest(documents: Sequence[Document]) -> str:
    """Return a hash of all that documents hold."""
    digest = hashlib.sha256()
    for document in documents:
        row = [document.id, document.text, document.labels, document.group, _metadata(document)]
        digest.update(json.dumps([*row, *([document.spans] if document.spans else [])]).encode() + b"\n")
    return f"sha256:{digest.hexdigest()}"


def encode_documents(documents: Sequence[Document], encoder: Encoder, metric: str) -> NDArray[np.float32]:
    """Return the vectors ``(N, D)`` of documents, of length 1 where the metric is cosine.

    Raises:
        ShapeError: the encoder gives vectors of another shape than it says.
        RetrievalError: a vector holds NaN or infinity.
    """
    return prepare(encoder.encode([document.text for document in documents]), len(documents), encoder.dimension, metric)


def prepare(vectors: NDArray[np.float32], count: int, dimension: int, metric: str) -> NDArray[np.float32]:
    """Check vectors and bring them into the form that is stored and compared."""
    import numpy as np

    vectors = np.ascontiguousarray(vectors, dtype=np.float32)
    if vectors.shape != (count, dimension):
        raise ShapeError(
            f"{count:,} texts need vectors of shape ({count}, {dimension}), the index's dimension, but have shape "
            f"{vectors.shape}. Use the encoder that the index was built with."
        )
    check_finite(vectors, "encoded")
    return normalise(vectors) if metric == "cosine" else vectors


def write_shard(folder: Path, name: str, documents: Sequence[Document], stored: NDArray[Any]) -> ShardEntry:
    """Write documents and their packed vectors under a name that no manifest mentions yet."""
    import numpy as np
    import pyarrow
    import pyarrow.ipc

    entry = ShardEntry(name, len(documents), documents_digest(documents))
    schema = pyarrow.schema(
        {
            "id": pyarrow.string(),
            "text": pyarrow.large_string(),
            "labels": pyarrow.list_(pyarrow.string()),
            "group": pyarrow.string(),
            "metadata": pyarrow.string(),
            "spans": pyarrow.list_(pyarrow.list_(pyarrow.int64(), 2)),
        }
    )
    rows = [_as_row(document) for document in documents]

    def write_documents(file: Any) -> None:
        with pyarrow.ipc.new_stream(file, schema) as stream:
            stream.write_batch(pyarrow.RecordBatch.from_pylist(rows, schema=schema))

    text_file, vector_file, key_file = entry.files
    keys = id_keys(document.id for document in documents)
    write_durably(folder / text_file, write_documents)
    write_durably(folder / vector_file, lambda file: np.save(file, stored, allow_pickle=False))
    write_durably(folder / key_file, lambda file: np.save(file, keys, allow_pickle=False))
    return entry


def _metadata(document: Document) -> str:
    return json.dumps(dict(document.metadata), ensure_ascii=True, default=str)


def _as_row(document: Document) -> dict[str, Any]:
    plain = {"id": document.id, "text": document.text, "labels": document.labels, "group": document.group}
    return {**plain, "metadata": _metadata(document), "spans": document.spans}


def _from_row(row: dict[str, Any]) -> Document:
    spans = tuple((begin, end) for begin, end in row.get("spans") or ())
    return Document(row["id"], row["text"], tuple(row["labels"]), row["group"], json.loads(row["metadata"]), spans)
