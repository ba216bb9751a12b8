"""Folders of files that check themselves: a manifest holds the SHA-256 of each file, and of itself."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peft_rag.errors import RetrievalError
from peft_rag.files import sha256_of_file, sha256_of_json, write_json

if TYPE_CHECKING:
    from numpy.typing import NDArray

MANIFEST = "manifest.json"


def write_manifest(folder: Path, about: Mapping[str, Any]) -> None:
    """Write the manifest of a folder whose files are complete.

    Args:
        folder: the folder.
        about: what else the manifest says, as JSON.
    """
    hashes = {path.name: sha256_of_file(path) for path in sorted(folder.iterdir()) if path.name != MANIFEST}
    content = {**about, "files": hashes}
    write_json(folder / MANIFEST, {**content, "manifest": sha256_of_json(content)})


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return a folder's manifest once it and every file it names match their hashes.

    Raises:
        RetrievalError: there is no manifest, or something differs.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise RetrievalError(f"'{folder}' holds no index (no {MANIFEST}). Name a folder that an index was saved in.")
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        expected = content.pop("manifest")
        intact = expected == sha256_of_json(content)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        intact = False
    if not intact:
        raise _damaged(folder, MANIFEST)
    for name, expected in content["files"].items():
        if not (folder / name).is_file() or sha256_of_file(folder / name) != expected:
            raise _damaged(folder, name)
    return content


def save_array(path: Path, array: NDArray[Any]) -> None:
    """Write an array as ``.npy``, without pickle."""
    import numpy as np

    np.save(path, array, allow_pickle=False)


def load_array(path: Path) -> NDArray[Any]:
    """Read an array that `save_array` wrote as a read-only memory map."""
    import numpy as np

    mapped: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    return mapped


def _damaged(folder: Path, name: str) -> RetrievalError:
    return RetrievalError(
        f"'{folder}': the file {name} is missing or damaged (its SHA-256 is not the recorded one). "
        "Remove the folder and build it anew."
    )
