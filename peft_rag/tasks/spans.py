"""Parts of a text that a record marks, and the tokens that stand for them."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from peft_rag.errors import DataError
from peft_rag.records import text_field, words_field

if TYPE_CHECKING:
    from peft_rag.records import Record
    from peft_rag.tasks.base import Span


def marked_text(record: Record, text_name: str, tokens_name: str, marks: Sequence[str]) -> tuple[str, tuple[Span, ...]]:
    """Read a record's text and the parts of it that some fields mark.

    A part of a text is given by its characters (``[0, 5]`` or ``{"start": 0, "end": 5}``), a part of a list of tokens
    by the position of one, counted from 0, or a list of positions. Tokens are joined by spaces. A record that has both
    is read by its tokens where parts are marked, and by its text where none are.

    Args:
        record: the record.
        text_name: the field that holds a text.
        tokens_name: the field that holds a list of tokens in its place.
        marks: the fields that mark parts.

    Raises:
        DataError: a field is missing or holds something else; a part is empty or lies outside of the text.
    """
    if tokens_name not in record.fields or (text_name in record.fields and not marks):
        text = text_field(record, text_name, "--text_field")
        return text, tuple(character_span(_mark(record, name), text, f"{record.where}: '{name}'") for name in marks)
    tokens = words_field(record, tokens_name, "--task.tokens_field", spaces=True)
    text = " ".join(tokens)
    if not text.strip():
        raise DataError(f"{record.where}: field '{tokens_name}' holds no words. Remove the record or give it some.")
    return text, tuple(_token_span(_mark(record, name), tokens, f"{record.where}: '{name}'") for name in marks)


def character_span(value: Any, text: str, what: str) -> Span:
    """Read a part of a text that is given by its characters.

    Args:
        value: ``[start, end]`` or a mapping with both; the end is the character after the last.
        text: what it is part of.
        what: how messages begin.

    Raises:
        DataError: it is no part of the text, or an empty one.
    """
    pair = (value.get("start"), value.get("end")) if isinstance(value, Mapping) else value
    if not (isinstance(pair, (list, tuple)) and len(pair) == 2 and all(map(_is_number, pair))):
        raise DataError(
            f"{what} is {value!r}, which is no part of a text. Give its first character and the one after its last, as "
            '[0, 5] or {"start": 0, "end": 5}.'
        )
    begin, end = pair
    if not 0 <= begin <= end <= len(text):
        raise DataError(
            f"{what} {[begin, end]} lies outside of its text of {len(text)} characters. Correct its start and end (one "
            "past the last character)."
        )
    return _not_empty((begin, end), text, f"{what} {[begin, end]}")


def _token_span(value: Any, tokens: Sequence[str], what: str) -> Span:
    positions = [value] if _is_number(value) else value
    if not (isinstance(positions, (list, tuple)) and all(map(_is_number, positions))):
        raise DataError(
            f"{what} is {value!r}, which is no position of a token and no list of positions. Count tokens from 0."
        )
    if not positions:
        raise DataError(f"{what} is an empty list. Give the position of one token at least.")
    if not 0 <= min(positions) <= max(positions) < len(tokens):
        raise DataError(
            f"{what} {value} lies outside of its {len(tokens)} tokens, which are counted from 0. Correct it."
        )
    if list(positions) != list(range(positions[0], positions[-1] + 1)):
        raise DataError(f"{what} {value} leaves tokens out. Give positions that follow each other.")
    begin = sum(len(token) + 1 for token in tokens[: positions[0]])
    words = " ".join(tokens[positions[0] : positions[-1] + 1])
    return _not_empty((begin, begin + len(words)), " ".join(tokens), f"{what} {value}")


def tokens_of(part: Span, text: str, spans: Sequence[Span | None], what: str) -> list[int]:
    """Return the tokens that stand for a part of a text; for one that the tokenizer drops, the token before it.

    Args:
        part: its characters.
        text: what it is part of.
        spans: of each token the part of the text that it stands for, or None.
        what: how a message begins.

    Raises:
        DataError: the part lies beyond the window.
    """
    tokens = [(place, span) for place, span in enumerate(spans) if span is not None and span[0] < span[1]]
    inside = [place for place, span in tokens if span[0] < part[1] and span[1] > part[0]]
    if inside:
        return inside
    if part[0] >= max((span[1] for _, span in tokens), default=0) and bears_text(text[slice(*part)]):
        raise DataError(
            f"{what} ('{text[slice(*part)]}') lies beyond the window of tokens. Raise --max_length, or cut the text."
        )
    before = [place for place, span in tokens if span[1] <= part[0]]
    return before[-1:] or [0]


def bears_text(word: str) -> bool:
    """Say whether a word has a character that stands for itself: no mark, control or separator, which tokenizers drop.

    >>> bears_text("it\u0301"), bears_text("\ufe0f"), bears_text("\u200b")
    (True, False, False)
    """
    return any(unicodedata.category(character)[0] not in "CMZ" for character in word)


def own_spans(offsets: Sequence[Span], segments: Sequence[int | None], segment: int) -> list[Span | None]:
    """Return what each token of a segment stands for, None for tokens outside of it.

    Args:
        offsets: characters of each token, as the tokenizer gives them.
        segments: the segment of each token; None for special tokens.
        segment: the number of the example's own.
    """
    return [tuple(span) if one == segment else None for span, one in zip(offsets, segments, strict=True)]  # type: ignore[misc]


def _mark(record: Record, name: str) -> Any:
    value = record.fields.get(name)
    if value is None:
        found = ", ".join(sorted(record.fields)) or "no field at all"
        raise DataError(
            f"{record.where}: field '{name}' is missing (found: {found}). It marks the part of the text that is judged."
        )
    return value


def _not_empty(part: Span, text: str, what: str) -> Span:
    if not text[slice(*part)].strip():
        raise DataError(f"{what} covers no word. Let it cover one at least.")
    return part


def _is_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
