"""What is added to an index, checked against what the index holds of it, whole or in chunks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from peft_rag.corpus import Document
from peft_rag.errors import CorpusError, RetrievalError
from peft_rag.retrieval.chunks import cut_from
from peft_rag.retrieval.pieces import chunk_of_another, stored_pieces
from peft_rag.retrieval.snapshot import Snapshot


def to_their_end(documents: Iterable[Document], folder: Path) -> Iterator[Document]:
    """Yield documents, and tell a failure of their source from one of the folder that is written.

    Raises:
        RetrievalError: their source failed.
    """
    try:
        yield from documents
    except OSError as error:
        raise RetrievalError(
            f"the documents for the index '{folder}' could not be read to their end ({error.strerror or error}). "
            "Run the same command again once they can."
        ) from error


class Adding:
    """Documents on their way into an index.

    Attributes:
        replaced: the rows whose place they take.
    """

    def __init__(self, documents: Iterable[Document], present: Snapshot, folder: Path, *, replace: bool) -> None:
        """Take the documents, what the index in a folder holds, and whether they may replace any of it."""
        self.replaced: list[int] = []
        self._documents, self._present, self._folder, self._replace = documents, present, folder, replace
        self._whole: dict[str, str] = {}

    def __iter__(self) -> Iterator[Document]:
        for document in to_their_end(self._documents, self._folder):
            self._whole[document.id] = cut_from(document)
            yield document

    def check(self, ids: Sequence[str]) -> None:
        """Look up the documents read since the last call.

        Raises:
            CorpusError: one is stored already and nothing may be replaced, one has the id of another's chunk, or a text
                that is stored in chunks would be replaced by one that is whole.
        """
        whole, self._whole = self._whole, {}
        shards, deleted = self._present.shards, self._present.deleted
        taken = stored_pieces(shards, deleted, {*whole, *whole.values()})
        for name in sorted(taken):
            other = chunk_of_another(shards, deleted, name)
            if other and whole.get(name) != other:
                if name in whole:
                    raise CorpusError(
                        f"id '{name}' is that of a chunk of '{other}' in the index '{self._folder}'. Give the new "
                        "document another id."
                    )
                taken[name] = [row for row in taken[name] if row not in shards.find([name], deleted).values()]
        taken = {name: rows for name, rows in taken.items() if rows}
        self._refuse(whole, taken)
        self.replaced += [row for rows in taken.values() for row in rows]

    def _refuse(self, whole: Mapping[str, str], taken: Mapping[str, Sequence[int]]) -> None:
        if taken and not self._replace:
            numbered = " A document without an id goes by its number; name the field of ids with --id_field."
            raise CorpusError(
                f"id '{min(taken)}' is in the index '{self._folder}' already. Update documents with --replace, or "
                f"give the new ones other ids.{numbered if min(taken).isdecimal() else ''}"
            )
        known = self._present.shards.find(list(taken), self._present.deleted)
        for name, rows in taken.items():
            pieces = len(set(rows) - {known.get(name)})
            if whole.get(name) == name and pieces:
                raise CorpusError(
                    f"document '{name}' lies in the index '{self._folder}' in {pieces:,} chunks, and one vector of its "
                    "beginning would take their place. Cut it as before (--chunk), or delete it first."
                )


def refuse_double_meaning(present: Snapshot, pieces: Mapping[str, Sequence[int]]) -> None:
    """Refuse an id that a chunk has and a document in chunks too.

    Raises:
        RetrievalError: one has.
    """
    for name, rows in pieces.items():
        other = chunk_of_another(present.shards, present.deleted, name) if len(rows) > 1 else ""
        if other:
            raise RetrievalError(
                f"'{name}' is both a document in {len(rows) - 1:,} chunks and a chunk of '{other}'. Nothing was "
                "changed. Name the chunks."
            )
