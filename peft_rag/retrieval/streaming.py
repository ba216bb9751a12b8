"""A corpus read a document at a time, from any source that `Corpus.read` knows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from peft_rag.corpus import Document, read_document
from peft_rag.errors import CorpusError
from peft_rag.records import iter_records, name_field
from peft_rag.retrieval.stored import is_index, stored_documents

if TYPE_CHECKING:
    from peft_rag.records import Source


def stream_documents(
    source: Source,
    *,
    text_field: str = "text",
    label_field: str = "label",
    id_field: str = "id",
    group_field: str = "",
    named: bool = False,
) -> Iterator[Document]:
    """Yield the documents of a source as `Corpus.read` reads them, but holding a few at a time.

    Args:
        source: a file, a folder, ``demo:NAME/SPLIT``, a hub data set, or data in memory.
        text_field: the field that holds the text.
        label_field: the field that holds one label or a list of them.
        id_field: the field that holds the id; a document without one gets its number, counted from 1.
        group_field: the field that holds the group; empty for none.
        named: whether each must have an id of its own, and not a number.

    Raises:
        CorpusError: a record has no text, or an unusable label or id; the message names file, line and field.
        DataError: the source cannot be read.
        RetrievalError: it is an index that is unfinished or damaged.
    """
    if is_index(source):
        yield from stored_documents(source)
        return
    for number, record in enumerate(iter_records(source), start=1):
        if named and not name_field(record, id_field):
            raise CorpusError(
                f"{record.where}: has no id in field '{id_field}', so that it is not said which document it replaces. "
                "Name the field with --id_field, or leave --replace away."
            )
        yield read_document(record, number, text_field, label_field, id_field, group_field)
