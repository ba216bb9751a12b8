"""Rows of JSON Lines, JSON, CSV and TSV files; whatever is wrong with one is named by file and line."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from peft_rag.errors import DataError
from peft_rag.refusals import Refuse

_EXAMPLE = '{"text": "…", "label": "…"}'
_LONGEST_FIELD = 1 << 26


class Row(NamedTuple):
    """One row: its number, what that counts (``line`` or ``row``), and the values by field."""

    line: int
    unit: str
    fields: dict[str, Any]


def read_rows(path: Path, refuse: Refuse | None = None) -> Iterator[Row]:
    """Read a ``.jsonl``, ``.json``, ``.csv`` or ``.tsv`` file in UTF-8, with or without a byte-order mark.

    A line is read when its turn comes, and blank lines are skipped. A ``.json`` file may hold one array of objects
    instead of an object a line; only such a file is held in memory whole.

    Args:
        path: the file.
        refuse: told of a row that cannot be read, in place of an error, where the rows after it still can: not after
            a quote that is never closed, nor in a JSON array that is broken.

    Raises:
        DataError: the file is not in UTF-8, or a line of it cannot be read.
        OSError: it cannot be opened.
    """
    suffix = path.suffix.lower()
    refuse = refuse or _raise
    if suffix in (".csv", ".tsv"):
        return _csv(path.name, read_lines(path), "\t" if suffix == ".tsv" else ",", refuse)
    if suffix == ".json" and next(filter(str.strip, read_lines(path)), "").lstrip().startswith("["):
        return _json_array(path.name, "".join(read_lines(path)), refuse)
    return _json_lines(path.name, read_lines(path, refuse), refuse)


def kind_of(value: Any) -> str:
    """Say in an error message what was found, e.g. ``a list``."""
    names = {dict: "an object", list: "a list", str: "text", bool: "a truth value", type(None): "null"}
    return names.get(type(value), f"the {type(value).__name__} {str(value)[:40]}")


def read_lines(path: Path, refuse: Refuse | None = None) -> Iterator[str]:
    """Yield the lines of a file in UTF-8, with or without a byte-order mark, each with its line feed.

    Args:
        path: the file.
        refuse: told of a line that is no text, in place of an error; a blank one stands for it.

    Raises:
        DataError: a line is not in UTF-8, or holds a NUL byte; or the file is UTF-16.
        OSError: it cannot be opened.
    """
    with path.open("rb") as file:
        yield from decoded_lines(file, path, refuse)


def decoded_lines(file: Iterable[bytes], path: Path, refuse: Refuse | None = None) -> Iterator[str]:
    """Yield lines of bytes as `read_lines` does, which come from a file of that name, or from what has no suffix."""
    refuse = refuse or _raise
    for number, line in enumerate(file, start=1):
        if number == 1 and line.startswith((b"\xff\xfe", b"\xfe\xff")):
            raise DataError(f"{path.name} line 1: this is UTF-16, not UTF-8. {_iconv(path, 'UTF-16')}")
        try:
            text = _decode(path, number, line)
        except DataError as error:
            refuse(number, error)
            text = "\n"
        yield text


def _raise(line: int, error: DataError) -> None:
    raise error


def _decode(path: Path, number: int, line: bytes) -> str:
    """Decode one line; name line and byte of whatever is not text."""
    if b"\0" in line:
        raise DataError(
            f"{path.name} line {number:,}: a NUL byte at byte {line.index(0) + 1:,} of the line, so this is no text "
            f"file or a damaged one. Remove it with: tr -d '\\000'{_into(path, 'clean', ' <')}"
        )
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path.name} line {number:,}: byte 0x{line[error.start]:02x} (byte {error.start + 1:,} of the line) is no "
            f"UTF-8. {_iconv(path, 'WINDOWS-1252')}"
        ) from None
    return text.removeprefix("\ufeff") if number == 1 else text


def _iconv(path: Path, encoding: str) -> str:
    return f"Convert it with iconv: iconv -f {encoding} -t UTF-8{_into(path, 'utf8')}"


def _into(path: Path, name: str, sign: str = "") -> str:
    """Return the end of a command that reads a file and writes another; a stream, which has no suffix, needs none."""
    return f"{sign} {path.name} > {name}{path.suffix}" if path.suffix else ""


def _json_lines(name: str, lines: Iterable[str], refuse: Refuse) -> Iterator[Row]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            fields = _json_object(f"{name} line {number:,}", line.removesuffix("\n"))
        except DataError as error:
            refuse(number, error)
            continue
        yield Row(number, "line", fields)


def _json_object(where: str, line: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{where}: not JSON at column {error.colno:,} ({error.msg}). "
            f"Each line must be one JSON object such as {_EXAMPLE}."
        ) from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: cannot be read as JSON ({str(error).split(';')[0]}). Repair the line.") from None
    if not isinstance(value, dict):
        raise DataError(f"{where}: holds {kind_of(value)}, not an object. Each line must be one such as {_EXAMPLE}.")
    return value


def _json_array(name: str, text: str, refuse: Refuse) -> Iterator[Row]:
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{name} line {error.lineno:,}: not JSON at column {error.colno:,} ({error.msg}). "
            f"The file must be one array of objects, or hold one object a line."
        ) from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{name}: cannot be read as JSON ({str(error).split(';')[0]}).") from None
    for number, value in enumerate(values, start=1):
        if isinstance(value, dict):
            yield Row(number, "row", value)
        else:
            why = f"{name} row {number:,}: holds {kind_of(value)}, not an object such as {_EXAMPLE}."
            refuse(number, DataError(why))


def _csv(name: str, lines: Iterable[str], delimiter: str, refuse: Refuse) -> Iterator[Row]:
    rows = _csv_rows(name, lines, delimiter)
    _, header = next(rows, (1, []))
    twice = sorted({column for column in header if header.count(column) > 1})
    if twice:
        raise DataError(f"{name} line 1: column '{twice[0]}' stands there twice. Rename one of them.")
    for line, row in rows:
        if len(row) != len(header):
            why = (
                f"{name} line {line:,}: {len(row)} columns, but the header has {len(header)} "
                f"({', '.join(header)}). Put quotes around a field that holds {_separator(delimiter)}."
            )
            refuse(line, DataError(why))
            continue
        yield Row(line, "line", dict(zip(header, row, strict=True)))


def _csv_rows(name: str, lines: Iterable[str], delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Yield each row with the line on which it begins; blank lines are no rows."""
    reader = csv.reader(_split_at_returns(lines), delimiter=delimiter, strict=True)
    begin = 1
    try:
        while (row := _next_row(reader)) is not None:
            if row:
                yield begin, row
            begin = reader.line_num + 1
    except csv.Error as error:
        raise DataError(
            f"{name} line {begin:,}: not CSV ({error}). Close the quote that begins here, "
            'and write a quote inside a quoted field as "".'
        ) from None


def _next_row(reader: Iterator[list[str]]) -> list[str] | None:
    """Return the next row, or None at the end; the module's limit for a field, which all share, is left as it was."""
    limit = csv.field_size_limit(_LONGEST_FIELD)
    try:
        return next(reader, None)
    finally:
        csv.field_size_limit(limit)


def _split_at_returns(lines: Iterable[str]) -> Iterator[str]:
    """Yield lines that end at carriage returns too, as some spreadsheets write them."""
    for line in lines:
        if "\r" in line:
            yield from io.StringIO(line, newline="")
        else:
            yield line


def _separator(delimiter: str) -> str:
    return "a tab" if delimiter == "\t" else "a comma"
