"""What is made once and kept on disk, arrays above all: keyed by content, checked by hash, read as memory maps."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from peft_rag.errors import RetrievalError
from peft_rag.files import new_folder
from peft_rag.retrieval.storage import load_array, read_manifest, save_array, write_manifest

if sys.platform != "win32":
    import fcntl

if TYPE_CHECKING:
    from numpy.typing import NDArray


Made = TypeVar("Made")
Kept = TypeVar("Kept")


def cached(
    folder: Path,
    about: Mapping[str, Any],
    make: Callable[[], Made],
    write: Callable[[Path, Made], None],
    read: Callable[[Mapping[str, Any]], Kept],
) -> Kept:
    """Return what a folder keeps, making it first if it keeps nothing, or something damaged.

    Of several processes that ask at once, one makes it and the others wait for it.

    Args:
        folder: where it is kept; its name should be a hash of all that decides it.
        about: what the manifest says of it besides, as JSON.
        make: gives what is to be kept.
        write: puts that into a folder as files.
        read: opens the files, whose hashes have matched those of the manifest it is given; an error means damage.

    Raises:
        RetrievalError: the folder cannot be written.
    """
    with _locked(folder):
        kept = _read(folder, read)
        if kept is None:
            made = make()
            with _explained(folder):
                _write(folder, about, lambda working: write(working, made))
            kept = _read(folder, read)
    if kept is None:
        raise RetrievalError(f"the cache '{folder}' is damaged as soon as it is written. Check the disk.")
    return kept


def cached_arrays(
    folder: Path,
    about: Mapping[str, Any],
    compute: Callable[[], Mapping[str, NDArray[Any]]],
    sound: Callable[[Mapping[str, NDArray[Any]]], bool] | None = None,
) -> dict[str, NDArray[Any]]:
    """Return the arrays a folder keeps, memory-mapped and read-only, computing them first if need be; see `cached`.

    Args:
        folder: where they are kept.
        about: what the manifest says of them besides, as JSON.
        compute: gives the arrays by name.
        sound: whether arrays that an earlier call kept are still right; they are computed anew if not.
    """
    computed = False

    def make() -> Mapping[str, NDArray[Any]]:
        nonlocal computed
        computed = True
        return compute()

    def write(working: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
        for name, array in arrays.items():
            save_array(working / f"{name}.npy", array)

    def read(manifest: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
        arrays = {name.removesuffix(".npy"): load_array(folder / name) for name in manifest["files"]}
        if sound is not None and not computed and not sound(arrays):
            raise ValueError(f"what '{folder}' keeps is no longer so")
        return arrays

    return cached(folder, about, make, write, read)


def keep_copy(made: Path, folder: Path) -> None:
    """Keep what another cache has made, whole or not at all, unless it is kept already; readers are never disturbed.

    Args:
        made: a folder of that cache.
        folder: where it is kept; its name should be the same.

    Raises:
        RetrievalError: the folder cannot be written.
    """
    with _locked(folder):
        if not folder.exists():
            with _explained(folder), new_folder(folder) as working:
                shutil.copytree(made, working, dirs_exist_ok=True)


def _write(folder: Path, about: Mapping[str, Any], write: Callable[[Path], None]) -> None:
    for unfinished in [folder, *folder.parent.glob(f".{folder.name}.*")]:
        shutil.rmtree(unfinished, ignore_errors=True)
    with new_folder(folder) as working:
        write(working)
        write_manifest(working, about)


def _read(folder: Path, read: Callable[[Mapping[str, Any]], Kept]) -> Kept | None:
    try:
        return read(read_manifest(folder))
    except (RetrievalError, OSError, ValueError):
        return None


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder, which is a file beside it, waiting for whoever has it."""
    with _explained(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        file = (folder.parent / f"{folder.name}.lock").open("a")
    with file:
        if sys.platform != "win32":
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def _explained(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RetrievalError(
            f"the cache '{folder.parent}' cannot be written ({error.strerror or error}). "
            "Set PEFT_RAG_CACHE to a folder that can be, and has room."
        ) from error
