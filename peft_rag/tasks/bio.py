"""Tags that say where entities begin, go on and end: ``O``, ``B-kind``, ``I-kind``."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from peft_rag.errors import DataError

if TYPE_CHECKING:
    from peft_rag.records import Record
    from peft_rag.tasks.base import Span

OUTSIDE = "O"
_TAG = re.compile(r"O|[BI]-.+")


def check_bio(tags: Sequence[str], where: str) -> None:
    """Raise `DataError` on a tag that is not BIO, or an entity that goes on without having begun.

    >>> check_bio(["O", "B-person", "I-person"], "a.jsonl line 1")
    """
    before = OUTSIDE
    for number, tag in enumerate(tags, start=1):
        if not _TAG.fullmatch(tag):
            raise DataError(
                f"{where}: tag {number} is '{tag}', which is not BIO. Write {OUTSIDE}, B-kind for an entity's first "
                "word and I-kind for the others."
            )
        if tag[0] == "I" and before[2:] != tag[2:]:
            raise DataError(
                f"{where}: tag {number} is '{tag}', but the tag before it is '{before}', so that no entity "
                f"'{tag[2:]}' has begun. Write B-{tag[2:]} for its first word."
            )
        before = tag


def tags_of_spans(record: Record, name: str, text: str, words: Sequence[Span]) -> list[str]:
    """Turn a record's entities, given by their characters, into a tag for each word.

    Args:
        record: its field holds a list of mappings with ``start``, ``end`` and ``label``.
        name: of that field.
        text: what they are parts of.
        words: the characters of each word.

    Raises:
        DataError: a span lies outside of the text, covers no whole words, or crosses another.
    """
    given = record.fields.get(name)
    if not isinstance(given, (list, tuple)) or not all(isinstance(one, Mapping) for one in given):
        raise DataError(
            f"{record.where}: field '{name}' must be a list of entities like "
            '{"start": 0, "end": 5, "label": "person"}. Name the field with --task.spans_field.'
        )
    tags = [OUTSIDE] * len(words)
    for entity in given:
        begin, end, kind = (entity.get(key) for key in ("start", "end", "label"))
        what = f"{record.where}: entity {dict(entity)}"
        if not (_is_number(begin) and _is_number(end) and 0 <= begin < end <= len(text)):
            raise DataError(
                f"{what} lies outside of its text of {len(text)} characters. Correct its start and end (one past the "
                "last character)."
            )
        if not isinstance(kind, str) or not kind.strip():
            raise DataError(f"{what} has no label. Give it one.")
        covered = [place for place, (first, last) in enumerate(words) if first < end and last > begin]
        if not covered or words[covered[0]][0] < begin or words[covered[-1]][1] > end:
            raise DataError(f"{what} ('{text[begin:end]}') begins or ends inside of a word. Let it cover whole words.")
        if any(tags[place] != OUTSIDE for place in covered):
            raise DataError(f"{what} ('{text[begin:end]}') crosses another. Tags can hold one entity a word.")
        for place in covered:
            tags[place] = f"{'B' if place == covered[0] else 'I'}-{kind}"
    return tags


def _is_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
