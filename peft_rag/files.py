"""Files written whole or not at all, and hashed the same way everywhere."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from peft_rag.errors import ArtefactError

_BLOCK = 1 << 20


def sha256_of_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes as ``sha256:<hex>``."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return f"sha256:{digest.hexdigest()}"


def sha256_of_json(value: Any) -> str:
    """Return the SHA-256 of a JSON-able value, independent of key order.

    >>> sha256_of_json({"a": 1, "b": 2}) == sha256_of_json({"b": 2, "a": 1})
    True
    """
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON through a temporary file, synced and renamed."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, sort_keys=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write text as UTF-8 through a temporary file, synced and renamed; everyone may read it."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write bytes through a temporary file, synced and renamed; everyone may read it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Give a temporary folder that becomes ``target`` when the block ends well, and vanishes when it does not.

    Args:
        target: the folder to make; it may exist only if it is empty.

    Raises:
        ArtefactError: ``target`` already holds something, or cannot be made there.
    """
    refuse_nonempty(target)
    place = Path(os.path.realpath(target))
    with making(target):
        place.parent.mkdir(parents=True, exist_ok=True)
        working = Path(tempfile.mkdtemp(dir=place.parent, prefix=f".{place.name}."))
    try:
        yield working
        for path in (*working.rglob("*"), working):
            _sync(path)
        os.chmod(working, 0o755)
        refuse_nonempty(target)
        os.replace(working, place)
        _sync(place.parent)
    except BaseException:
        shutil.rmtree(working, ignore_errors=True)
        raise


@contextmanager
def making(target: Path) -> Iterator[None]:
    """Say of a place in which nothing can be made that it is such a one."""
    try:
        yield
    except OSError as error:
        in_the_way = isinstance(error, (FileExistsError, NotADirectoryError))
        why = "a file stands in its way" if in_the_way else error.strerror or error
        raise ArtefactError(
            f"output '{target}' cannot be made: {why}. Name a folder in a place that can be written to."
        ) from error


def refuse_nonempty(target: Path) -> None:
    """Raise when an output folder already holds something, so that nothing is ever overwritten."""
    if target.is_file():
        raise ArtefactError(f"output '{target}' is a file. Name a folder that does not exist yet.")
    if target.exists() and not target.is_dir():
        raise ArtefactError(f"output '{target}' is there, and is no folder. Name one that does not exist yet.")
    if target.is_dir():
        held = sorted(path.name for path in target.iterdir())
        if held:
            shown = ", ".join(held[:3]) + (", …" if len(held) > 3 else "")
            raise ArtefactError(
                f"output folder '{target}' already holds {len(held)} file{'s' * (len(held) > 1)} ({shown}). "
                "Name another with --output, or remove it first."
            )


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
