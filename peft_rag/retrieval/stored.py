"""An index folder as a source of documents, beside files and data sets."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TypeGuard

from peft_rag.corpus import Document
from peft_rag.retrieval.manifest import BUILDING, MANIFEST

if TYPE_CHECKING:
    from peft_rag.records import Source


def is_index(source: Source) -> TypeGuard[str | os.PathLike[str]]:
    """Return whether a source is a folder in which ``peft-rag index build`` has made an index, or begun to."""
    if not isinstance(source, (str, os.PathLike)):
        return False
    return any(os.path.isfile(os.path.join(source, name)) for name in (MANIFEST, BUILDING))


def stored_documents(folder: str | os.PathLike[str]) -> Iterator[Document]:
    """Yield the documents of an index as they were added, groups and metadata with them, holding a few at a time.

    Raises:
        RetrievalError: the index is unfinished or damaged.
    """
    from peft_rag.retrieval.snapshot import Snapshot

    yield from Snapshot.open(Path(folder)).documents()
