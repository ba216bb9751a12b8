"""Arrays computed once and kept on disk: keyed by content, checked by hash, read as memory maps."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peft_rag.errors import RetrievalError
from peft_rag.files import new_folder
from peft_rag.retrieval.storage import load_array, read_manifest, save_array, write_manifest

if sys.platform != "win32":
    import fcntl

if TYPE_CHECKING:
    from numpy.typing import NDArray


def cached_arrays(
    folder: Path, about: Mapping[str, Any], compute: Callable[[], Mapping[str, NDArray[Any]]]
) -> dict[str, NDArray[Any]]:
    """Return the arrays a folder keeps, computing them first if it keeps none or damaged ones.

    Of several processes that ask at once, one computes and the others wait for it.

    Args:
        folder: where the arrays are kept; its name should be a hash of all that decides them.
        about: what the manifest says of them besides, as JSON.
        compute: gives the arrays by name.

    Returns:
        The arrays by name, memory-mapped and read-only.

    Raises:
        RetrievalError: the folder cannot be written.
    """
    with locked(folder):
        kept = _read(folder)
        if kept is None:
            arrays = compute()
            with explained(folder):
                _write(folder, arrays, about)
            kept = _read(folder)
    if kept is None:
        raise RetrievalError(f"the cache '{folder}' is damaged as soon as it is written. Check the disk.")
    return kept


def _write(folder: Path, arrays: Mapping[str, NDArray[Any]], about: Mapping[str, Any]) -> None:
    clear(folder)
    with new_folder(folder) as working:
        for name, array in arrays.items():
            save_array(working / f"{name}.npy", array)
        write_manifest(working, about)


def clear(folder: Path) -> None:
    """Remove what a folder of the cache holds, and what a process that died left beside it."""
    for unfinished in [folder, *folder.parent.glob(f".{folder.name}.*")]:
        shutil.rmtree(unfinished, ignore_errors=True)


def _read(folder: Path) -> dict[str, NDArray[Any]] | None:
    try:
        files = read_manifest(folder)["files"]
        return {name.removesuffix(".npy"): load_array(folder / name) for name in files}
    except (RetrievalError, OSError, ValueError):
        return None


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder, which is a file beside it, waiting for whoever has it."""
    with explained(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        file = (folder.parent / f"{folder.name}.lock").open("a")
    with file:
        if sys.platform != "win32":
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def explained(folder: Path) -> Iterator[None]:
    """Say what can be done where a cache cannot be written."""
    try:
        yield
    except OSError as error:
        raise RetrievalError(
            f"the cache '{folder.parent}' cannot be written ({error.strerror or error}). "
            "Set PEFT_RAG_CACHE to a folder that can be, and has room."
        ) from error
