"""Rows of JSON Lines, JSON, CSV and TSV files; whatever is wrong with one is named by file and line."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from peft_rag.errors import DataError

_EXAMPLE = '{"text": "…", "label": "…"}'


class Row(NamedTuple):
    """One row: its number, what that counts (``line`` or ``row``), and the values by field."""

    line: int
    unit: str
    fields: dict[str, Any]


def read_rows(path: Path) -> Iterator[Row]:
    """Read a ``.jsonl``, ``.json``, ``.csv`` or ``.tsv`` file in UTF-8, with or without a byte-order mark.

    Blank lines are skipped. A ``.json`` file may hold one array of objects.

    Raises:
        DataError: the file is not in UTF-8, or a line of it cannot be read.
        OSError: it cannot be opened.
    """
    text = _decode(path, path.read_bytes())
    suffix = path.suffix.lower()
    if suffix in (".csv", ".tsv"):
        return _csv(path.name, text, "\t" if suffix == ".tsv" else ",")
    if suffix == ".json" and text.lstrip().startswith("["):
        return _json_array(path.name, text)
    return _json_lines(path.name, text)


def kind_of(value: Any) -> str:
    """Say in an error message what was found, e.g. ``a list``."""
    names = {dict: "an object", list: "a list", str: "text", bool: "a truth value", type(None): "null"}
    return names.get(type(value), f"the {type(value).__name__} {str(value)[:40]}")


def _decode(path: Path, data: bytes) -> str:
    """Decode UTF-8, with or without a byte-order mark; name line and byte of whatever is not text."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError(f"{path.name} line 1: the file is UTF-16, not UTF-8. {_iconv(path, 'UTF-16')}")
    nul = data.find(b"\0")
    if nul >= 0:
        line, column = _place(data, nul)
        raise DataError(
            f"{path.name} line {line:,}: a NUL byte at byte {column:,} of the line, so this is no text file "
            f"or a damaged one. Remove it with: tr -d '\\000' < {path.name} > clean{path.suffix}"
        )
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        start = error.start + (3 if data.startswith(b"\xef\xbb\xbf") else 0)
        line, column = _place(data, start)
        raise DataError(
            f"{path.name} line {line:,}: byte 0x{data[start]:02x} (byte {column:,} of the line) is no UTF-8. "
            f"{_iconv(path, 'WINDOWS-1252')}"
        ) from None


def _place(data: bytes, offset: int) -> tuple[int, int]:
    return data.count(b"\n", 0, offset) + 1, offset - data.rfind(b"\n", 0, offset)


def _iconv(path: Path, encoding: str) -> str:
    return f"Convert it with iconv: iconv -f {encoding} -t UTF-8 {path.name} > utf8{path.suffix}"


def _json_lines(name: str, text: str) -> Iterator[Row]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{name} line {number:,}"
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
            raise DataError(
                f"{where}: holds {kind_of(value)}, not an object. Each line must be one such as {_EXAMPLE}."
            )
        yield Row(number, "line", value)


def _json_array(name: str, text: str) -> Iterator[Row]:
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
        if not isinstance(value, dict):
            raise DataError(f"{name} row {number:,}: holds {kind_of(value)}, not an object such as {_EXAMPLE}.")
        yield Row(number, "row", value)


def _csv(name: str, text: str, delimiter: str) -> Iterator[Row]:
    limit = csv.field_size_limit(len(text) + 1)
    try:
        rows = list(_csv_rows(name, text, delimiter))
    finally:
        csv.field_size_limit(limit)
    if not rows:
        return
    _, header = rows[0]
    twice = sorted({column for column in header if header.count(column) > 1})
    if twice:
        raise DataError(f"{name} line 1: column '{twice[0]}' stands there twice. Rename one of them.")
    for line, row in rows[1:]:
        if len(row) != len(header):
            raise DataError(
                f"{name} line {line:,}: {len(row)} columns, but the header has {len(header)} "
                f"({', '.join(header)}). Put quotes around a field that holds {_separator(delimiter)}."
            )
        yield Row(line, "line", dict(zip(header, row, strict=True)))


def _csv_rows(name: str, text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Yield each row with the line on which it begins; blank lines are no rows."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    begin = 1
    try:
        for row in reader:
            if row:
                yield begin, row
            begin = reader.line_num + 1
    except csv.Error as error:
        raise DataError(
            f"{name} line {begin:,}: not CSV ({error}). Close the quote that begins here, "
            'and write a quote inside a quoted field as "".'
        ) from None


def _separator(delimiter: str) -> str:
    return "a tab" if delimiter == "\t" else "a comma"
