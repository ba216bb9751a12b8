"""What data holds, in one hash, so that a run or a result is never taken for one on other data of the same name."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from peft_rag.files import sha256_of_file, sha256_of_json
from peft_rag.retrieval.manifest import MANIFEST
from peft_rag.slices import split_slice


def content_hash(source: str) -> str:
    """Hash what a source holds: a file, an index by its manifest, or every file of another folder.

    Of demo data and of data sets on the hub the name stands for the content.
    """
    path = Path(split_slice(source)[0])
    if (path / MANIFEST).is_file():
        return _of_file(path / MANIFEST)
    if path.is_dir():
        files = sorted(inner for inner in path.rglob("*") if inner.is_file())
        return sha256_of_json({str(inner.relative_to(path)): _of_file(inner) for inner in files})
    return _of_file(path) if path.is_file() else source


def _of_file(path: Path) -> str:
    about = path.stat()
    return _hash(path, about.st_mtime_ns, about.st_size)


@lru_cache(maxsize=256)
def _hash(path: Path, changed: int, size: int) -> str:
    """Hash a file; time of change and size are there so that one that was written anew is hashed anew."""
    return sha256_of_file(path)
