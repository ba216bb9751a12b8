"""What can be retrieved: documents, and a corpus of them in a fixed order."""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, overload

from peft_rag.errors import CorpusError, DataError
from peft_rag.records import Record, label_field, read_records, text_field
from peft_rag.text_files import kind_of

if TYPE_CHECKING:
    from peft_rag.records import Source

_SPACE = re.compile(r"\s+")


@dataclass(frozen=True)
class Document:
    """One piece of text that can be retrieved.

    Attributes:
        id: the user's name for it, unique in its corpus.
        text: what is encoded, searched and shown.
        labels: its labels; empty if it has none.
        group: documents of one non-empty group are never neighbours of one another; e.g. the chunks of one
            page.
        metadata: everything else that the record held.
        spans: the parts of the text that its labels are about, as first character and the one after the last; empty
            where they are about all of it.
    """

    id: str
    text: str
    labels: tuple[str, ...] = ()
    group: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    spans: tuple[tuple[int, int], ...] = ()


class Corpus(Sequence[Document]):
    """Documents in a fixed order; a position in it is what a retriever returns.

    >>> corpus = Corpus.from_documents([Document("a", "one text"), Document("b", "another", labels=("x",))])
    >>> len(corpus), corpus[1].labels
    (2, ('x',))
    """

    def __init__(self, documents: Iterable[Document], name: str = "corpus") -> None:
        """Hold documents.

        Args:
            documents: the documents.
            name: what messages call the corpus.

        Raises:
            CorpusError: there is none, one has no text, or two have one id.
        """
        self.name = name
        self._documents = tuple(documents)
        if not self._documents:
            raise CorpusError(f"{name}: holds no documents. Give at least one.")
        _check(self._documents, lambda position: f"{name} document {position + 1:,}")

    @classmethod
    def from_documents(cls, documents: Iterable[Document], name: str = "corpus") -> Corpus:
        """Make a corpus of documents; raises as the constructor does."""
        return cls(documents, name)

    @classmethod
    def read(
        cls,
        source: Source,
        *,
        text_field: str = "text",
        label_field: str = "label",
        id_field: str = "id",
        group_field: str = "",
    ) -> Corpus:
        """Read a corpus from any source that `peft_rag.records.read_records` knows, or from an index folder.

        Args:
            source: a file, a folder, ``demo:NAME/SPLIT``, a hub data set, or data in memory; of an index that
                ``peft-rag index build`` made, the documents come as they are, whatever the fields are called.
            text_field: the field that holds the text.
            label_field: the field that holds one label or a list of them; a document need not have any.
            id_field: the field that holds the id; a document without one gets its number, counted from 1.
            group_field: the field that holds the group; empty for none.

        Raises:
            CorpusError: a record has no text, an unusable label or id, or an id that another has; the message
                names file, line and field.
            DataError: the source cannot be read.
            RetrievalError: it is an index that is unfinished or damaged.
        """
        from peft_rag.retrieval.stored import is_index, stored_documents

        if is_index(source):
            return cls(stored_documents(source), str(source))
        records = read_records(source)
        documents = [
            read_document(record, number, text_field, label_field, id_field, group_field)
            for number, record in enumerate(records, start=1)
        ]
        _check(documents, lambda position: records[position].where)
        return cls(documents, records[0].source)

    @cached_property
    def fingerprint(self) -> str:
        """``sha256:<hex>`` over ids, texts and labels in their order, and over spans where there are any."""
        return corpus_fingerprint(self._documents)

    @cached_property
    def texts(self) -> list[str]:
        """The texts, in the order of positions."""
        return [document.text for document in self._documents]

    def __len__(self) -> int:
        return len(self._documents)

    @overload
    def __getitem__(self, index: int) -> Document: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Document]: ...
    def __getitem__(self, index: int | slice) -> Document | Sequence[Document]:
        return self._documents[index]

    def __iter__(self) -> Iterator[Document]:
        return iter(self._documents)

    def __repr__(self) -> str:
        return f"Corpus({self.name!r}, {len(self):,} documents)"


def corpus_fingerprint(documents: Iterable[Document]) -> str:
    """Return `Corpus.fingerprint` of documents, which need not be held all at once."""
    digest = hashlib.sha256()
    for document in documents:
        about = [document.id, document.text, document.labels, *([document.spans] if document.spans else [])]
        digest.update(json.dumps(about).encode() + b"\n")
    return f"sha256:{digest.hexdigest()}"


def text_key(text: str) -> str:
    r"""Return a hash that texts share when they differ only in case, white space or Unicode form.

    >>> text_key("A  ﬁne\nday") == text_key("a fine day")
    True
    """
    return hashlib.sha256(folded_text(text).encode("utf-8", "surrogatepass")).hexdigest()


def folded_text(text: str) -> str:
    r"""Return a text as all have it that differ from it only in case, white space or Unicode form.

    >>> folded_text("A  ﬁne\nday ")
    'a fine day'
    """
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return _SPACE.sub(" ", folded).strip()


def read_document(
    record: Record, number: int, text_name: str, label_name: str, id_name: str, group_name: str
) -> Document:
    """Make a document of a record; what no field claims becomes its metadata."""
    named = {text_name, label_name, id_name, group_name}
    try:
        return Document(
            id=_name(record, id_name) or str(number),
            text=text_field(record, text_name, "--text_field"),
            labels=_labels(record, label_name),
            group=_name(record, group_name, required=True) if group_name else "",
            metadata={name: value for name, value in record.fields.items() if name not in named},
        )
    except CorpusError:
        raise
    except DataError as error:
        raise CorpusError(str(error)) from None


def _labels(record: Record, name: str) -> tuple[str, ...]:
    if record.fields.get(name) in (None, "", [], ()):
        return ()
    return label_field(record, name, "--label_field", allow_empty_list=True).values


def _name(record: Record, name: str, *, required: bool = False) -> str:
    """Return an id or a group as text; empty when the record has none."""
    if required and name not in record.fields:
        found = ", ".join(sorted(record.fields))
        raise CorpusError(
            f"{record.where}: field '{name}' is missing (found: {found}). Name another with --group_field."
        )
    value = record.fields.get(name)
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise CorpusError(f"{record.where}: field '{name}' holds {kind_of(value)}, not text or a whole number.")
    return str(value).strip()


def _check(documents: Sequence[Document], where: Any) -> None:
    seen: dict[str, int] = {}
    for position, document in enumerate(documents):
        if not document.text.strip():
            raise CorpusError(f"{where(position)}: the text is empty. Remove the document or give it a text.")
        first = seen.setdefault(document.id, position)
        if first != position:
            raise CorpusError(f"{where(position)}: id '{document.id}' is taken by {where(first)}. Make the ids unique.")
