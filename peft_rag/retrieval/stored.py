"""An index folder as a source of documents, beside files and data sets."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TypeGuard

from peft_rag.corpus import Document
from peft_rag.errors import CorpusError
from peft_rag.retrieval.manifest import BUILDING, MANIFEST
from peft_rag.slices import split_slice

if TYPE_CHECKING:
    from peft_rag.records import Source


def is_index(source: Source) -> TypeGuard[str | os.PathLike[str]]:
    """Return whether a source is a folder in which ``peft-rag index build`` has made an index, or begun to.

    Raises:
        CorpusError: it is some documents of an index, ``FOLDER[first:last]``.
    """
    if not isinstance(source, (str, os.PathLike)):
        return False
    if _holds_index(source):
        return True
    folder, wanted = split_slice(os.fspath(source))
    if wanted != slice(None) and _holds_index(folder):
        raise CorpusError(
            f"'{source}' is a part of an index, but an index is searched as a whole. Name '{folder}', or build one of "
            "the documents that are wanted."
        )
    return False


def _holds_index(folder: str | os.PathLike[str]) -> bool:
    return any(os.path.isfile(os.path.join(folder, name)) for name in (MANIFEST, BUILDING))


def stored_documents(folder: str | os.PathLike[str]) -> Iterator[Document]:
    """Yield the documents of an index as they were added, groups and metadata with them, holding a few at a time.

    Raises:
        RetrievalError: the index is unfinished or damaged.
    """
    from peft_rag.retrieval.snapshot import Snapshot

    yield from Snapshot.open(Path(folder)).documents()
