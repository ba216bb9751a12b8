"""Answers as parts of a context: how records hold them, and how a label does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from peft_rag.errors import DataError

if TYPE_CHECKING:
    from typing_extensions import Self

    from peft_rag.records import Record

NOWHERE = -1
"""Where an answer begins that no context is known for."""

_FORM = '{"text": ["Paris"], "answer_start": [17]}'


@dataclass(frozen=True)
class Answer:
    """A part of a context.

    Attributes:
        text: its characters.
        start: the first of them in the context.

    >>> str(Answer("Paris", 17))
    'Paris @17'
    """

    text: str
    start: int

    def __str__(self) -> str:
        return f"{self.text} @{self.start}"

    @classmethod
    def read(cls, label: str) -> Self:
        """Read an answer as it was written; anything else is a text that begins `NOWHERE`.

        >>> Answer.read("the @ sign @3"), Answer.read("war"), Answer.read("war @-1")
        (Answer(text='the @ sign', start=3), Answer(text='war', start=-1), Answer(text='war', start=-1))
        """
        text, at, start = label.rpartition(" @")
        known = at and (start.isdecimal() or start == str(NOWHERE))
        return cls(text, int(start)) if known else cls(label, NOWHERE)


def answers_of(record: Record, name: str, context: str) -> list[Answer]:
    """Return a record's answers, each once, in the order given; none where it says that there is no answer.

    Args:
        record: its field holds a mapping of the lists ``text`` and ``answer_start``.
        name: of that field.
        context: what they are parts of.

    Raises:
        DataError: the field has another form, or an answer does not stand where it is said to.
    """
    given = record.fields.get(name)
    texts, starts = (given.get(key) for key in ("text", "answer_start")) if isinstance(given, Mapping) else (None, None)
    if not (isinstance(texts, (list, tuple)) and isinstance(starts, (list, tuple)) and len(texts) == len(starts)):
        raise DataError(
            f"{record.where}: field '{name}' must hold as many texts as starts, like {_FORM}, both lists empty where "
            "there is no answer. Name the field with --task.answers_field."
        )
    answers = [_checked(record, text, start, context) for text, start in zip(texts, starts, strict=True)]
    return list(dict.fromkeys(answers))


def _checked(record: Record, text: Any, start: Any, context: str) -> Answer:
    """Return an answer without the spaces around it, or say where it stands instead."""
    if not isinstance(text, str) or not text.strip():
        raise DataError(f"{record.where}: the answer {text!r} is no text. Give one, or empty lists for no answer.")
    if not isinstance(start, int) or isinstance(start, bool) or start < 0 or not context.startswith(text, start):
        found = context.find(text)
        instead = "stands nowhere in it" if found < 0 else f"first stands at {found}"
        raise DataError(
            f"{record.where}: the answer '{text}' does not stand at character {start} of its context, but {instead}. "
            "Correct answer_start, which counts from 0, or the text."
        )
    return Answer(text.strip(), start + len(text) - len(text.lstrip()))
