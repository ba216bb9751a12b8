"""What data holds, in one hash, so that a run or a result is never taken for one on other data of the same name."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from peft_rag.files import sha256_of_file, sha256_of_json
from peft_rag.retrieval.manifest import MANIFEST
from peft_rag.slices import split_slice

SOURCES = ("train", "validation", "test", "corpus")
_MODELS = ("backbone", "encoder")


def content_hash(source: str) -> str:
    """Hash what a source holds: a file, an index by its manifest, or every file of another folder.

    Of demo data and of what lies on the hub the name stands for the content.
    """
    name = split_slice(source)[0]
    path = Path(name)
    if not path.exists() and Path(name.rpartition(":")[0] or name).is_dir():  # FOLDER:SPLIT
        path = Path(name.rpartition(":")[0])
    if (path / MANIFEST).is_file():
        return _of_file(path / MANIFEST)
    if path.is_dir():
        files = sorted(inner for inner in path.rglob("*") if inner.is_file())
        return sha256_of_json({str(inner.relative_to(path)): _of_file(inner) for inner in files})
    return _of_file(path) if path.is_file() else source


def held_by(settings: Mapping[str, Any]) -> dict[str, str]:
    """Hash what a run's settings name besides its data: the folders of models, and files that options name.

    A name counts as one of a file only where it has a suffix or lies in a folder, so that a method or a label is none.
    """
    named = dict(_named({name: value for name, value in settings.items() if name not in (*SOURCES, "output")}))
    # os.path takes what is too long for a name, as a prompt may be, for one of nothing.
    return {name: content_hash(value) for name, value in sorted(named.items()) if os.path.exists(value)}


def _named(settings: Mapping[str, Any], within: str = "") -> Iterator[tuple[str, str]]:
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _named(value, f"{within}{name}.")
        elif isinstance(value, str) and (name in _MODELS or os.sep in value or Path(value).suffix):
            yield f"{within}{name}", value


def _of_file(path: Path) -> str:
    about = path.stat()
    return _hash(path, about.st_mtime_ns, about.st_size)


@lru_cache(maxsize=256)
def _hash(path: Path, changed: int, size: int) -> str:
    """Hash a file; time of change and size are there so that one that was written anew is hashed anew."""
    return sha256_of_file(path)
