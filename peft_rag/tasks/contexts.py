"""The context of a question: in its record, or named there and kept in a file of its own."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from peft_rag.corpus import Corpus
from peft_rag.errors import DataError
from peft_rag.records import name_field, text_field
from peft_rag.registry import suggest

if TYPE_CHECKING:
    from peft_rag.records import Record


@dataclass(frozen=True)
class Contexts:
    """Contexts by id, read from their file when the first is asked for.

    Attributes:
        source: file, folder or hub data set, with ``id`` and ``text``; empty if there is none.
    """

    source: str

    @cached_property
    def known(self) -> dict[str, str]:
        """Every context by its id."""
        return {document.id: document.text for document in Corpus.read(self.source)}

    def of(self, record: Record, name: str, id_name: str) -> str:
        """Return a record's context.

        Args:
            record: the record.
            name: of the field that holds the context.
            id_name: of the field that holds its id, where the context is not there.

        Raises:
            DataError: there is none, or none of that id.
            CorpusError: the contexts cannot be used.
        """
        identity = name_field(record, id_name)
        if not identity or record.fields.get(name) is not None:
            return text_field(record, name, "--task.context_field")
        if not self.source:
            raise DataError(
                f"{record.where}: names its context '{identity}' in field '{id_name}', but holds none in '{name}'. "
                "Say where contexts are kept with --task.contexts FILE."
            )
        if identity not in self.known:
            raise DataError(
                f"{record.where}: context '{identity}' is not among the {len(self.known):,} of {self.source}."
                f"{suggest(identity, list(self.known))} Add it, or correct field '{id_name}'."
            )
        return self.known[identity]
