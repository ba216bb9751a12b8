"""What an index folder consists of: one manifest, replaced atomically, that names files which never change."""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from peft_rag.counts import check_count
from peft_rag.errors import ConfigError, RetrievalError
from peft_rag.files import sha256_of_file, sha256_of_json, write_json
from peft_rag.retrieval.precision import PRECISIONS

FORMAT = 1
MANIFEST = "manifest.json"
BUILDING = "building.json"
METRICS = ("cosine", "ip", "l2")

_OURS = re.compile(r"(\.tmp-)?(shard|deleted|graph|projection)-\d{6}.*|\.(manifest|building)\.json\..*")


@dataclass(frozen=True)
class StoreSettings:
    """How an index compares, searches and stores.

    Attributes:
        metric: ``cosine``, ``ip`` (inner product) or ``l2`` (scores are negative squared distances).
        M: links a node of the graph has on each level; more find more and take more memory.
        ef_construction: candidates looked at for each document while building the graph.
        ef: candidates looked at for each query; more find more and take longer.
        threads: threads that build the graph; 0 uses every core, 1 builds the same graph every time.
        exact_below: an index of fewer documents is searched exactly and has no graph.
        shard_size: documents a file; an interrupted build loses at most so many encodings.
        precision: numbers of a stored vector: ``float32``, ``float16`` or ``int8``.
        graph_dimensions: dimensions that the graph compares, of those in which vectors differ most; 0 compares all.
            What it proposes is ranked by the stored vectors.
    """

    metric: str = "cosine"
    M: int = 16
    ef_construction: int = 100
    ef: int = 64
    threads: int = 0
    exact_below: int = 10_000
    shard_size: int = 4096
    precision: str = "float32"
    graph_dimensions: int = 0

    @classmethod
    def compact(cls, **changes: Any) -> StoreSettings:
        """Return settings that take half of the memory, and what is given instead of theirs."""
        smaller: dict[str, Any] = {"precision": "int8", "graph_dimensions": 128, "ef": 100}
        return cls(**smaller | changes)

    def __post_init__(self) -> None:
        if self.metric not in METRICS:
            raise ConfigError(f"metric must be one of {', '.join(METRICS)}, but is {self.metric!r}.")
        if self.precision not in PRECISIONS:
            raise ConfigError(f"precision must be one of {', '.join(PRECISIONS)}, but is {self.precision!r}.")
        least = {"M": 2, "ef_construction": 1, "ef": 1, "shard_size": 1}
        least |= dict.fromkeys(("threads", "exact_below", "graph_dimensions"), 0)
        for name, smallest in least.items():
            check_count(name, getattr(self, name), smallest)


@dataclass(frozen=True)
class ShardEntry:
    """One run of documents, in the files ``NAME.arrow``, ``NAME.npy`` and ``NAME.keys.npy``.

    Attributes:
        name: the files' common name.
        rows: how many documents it holds, deleted ones included.
        digest: hash of the documents as they were given; tells a resumed build that they are the same.
    """

    name: str
    rows: int
    digest: str

    @property
    def files(self) -> tuple[str, str, str]:
        """The names of its files: documents, vectors, keys of ids."""
        return f"{self.name}.arrow", f"{self.name}.npy", f"{self.name}.keys.npy"


@dataclass(frozen=True)
class GraphEntry:
    """The graph file and what it covers.

    Attributes:
        file: its name.
        rows: rows below this number are in the graph; later ones are searched exactly.
        deleted: how many of those were deleted when it was written.
        slots: elements the graph holds room for in use, deleted ones included.
        projection: file of the directions it compares; empty if it compares all.
    """

    file: str
    rows: int
    deleted: int
    slots: int
    projection: str = ""

    @property
    def files(self) -> tuple[str, ...]:
        """The names of its files."""
        return (self.file, self.projection) if self.projection else (self.file,)


@dataclass(frozen=True)
class Manifest:
    """All that an index is.

    Attributes:
        generation: counts the writes.
        encoder: name, revision, fingerprint and maximal length of the encoder.
        dimension: length of a vector.
        settings: metric, graph and storage options.
        shards: the documents' files, in order.
        deleted: file that marks deleted rows; empty if none is.
        graph: the graph; None if there is none.
        count: documents that are not deleted.
        files: SHA-256 and size of every file.
        known: queries with the neighbours they must find.
        versions: of the libraries that wrote it.
    """

    generation: int
    encoder: dict[str, Any]
    dimension: int
    settings: StoreSettings
    shards: tuple[ShardEntry, ...]
    deleted: str
    graph: GraphEntry | None
    count: int
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    known: list[dict[str, Any]] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        """Rows stored, deleted ones included."""
        return sum(shard.rows for shard in self.shards)

    @property
    def names(self) -> list[str]:
        """The names of all files it refers to."""
        named = [name for shard in self.shards for name in shard.files]
        return [*named, *([self.deleted] if self.deleted else []), *(self.graph.files if self.graph else ())]


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Put a manifest in place of the one there is: this is the moment at which an index changes."""
    write_signed(folder / MANIFEST, {"format": FORMAT, **asdict(manifest)})
    sync_folder(folder)


def read_manifest(folder: Path) -> Manifest:
    """Read a manifest that is intact; the files it names are not looked at.

    Raises:
        RetrievalError: there is none, it is damaged, of another format, or names files that are not an index's own.
    """
    path = folder / MANIFEST
    try:
        path.open("rb").close()
    except FileNotFoundError:
        unfinished = (folder / BUILDING).is_file()
        raise RetrievalError(
            f"'{folder}' holds an unfinished index. Run the same peft-rag index build again; it resumes."
            if unfinished
            else f"'{folder}' holds no index (no {MANIFEST}). Make one with: peft-rag index build {folder} --corpus …"
        ) from None
    except OSError as error:
        raise unreadable(folder, error) from None
    content = read_signed(path)
    if content is None:
        raise damaged(folder, MANIFEST)
    if content.pop("format", None) != FORMAT:
        raise RetrievalError(f"'{folder}' is no index of format {FORMAT}. Build it anew with this version of peft-rag.")
    try:
        parts = {
            "settings": StoreSettings(**content["settings"]),
            "shards": tuple(ShardEntry(**shard) for shard in content["shards"]),
            "graph": GraphEntry(**content["graph"]) if content["graph"] else None,
        }
        manifest = Manifest(**{**content, **parts})
    except (TypeError, KeyError) as error:
        raise RetrievalError(
            f"'{folder}' was written by another version of peft-rag ({error}). Open it with that, or build it anew."
        ) from None
    foreign = [name for name in (*manifest.names, *manifest.files) if not is_ours(name) or name != Path(name).name]
    if foreign:
        raise RetrievalError(f"the index '{folder}' names a file that no index has, {foreign[0]!r}. Do not trust it.")
    return manifest


def check_files(folder: Path, files: Mapping[str, Mapping[str, Any]]) -> None:
    """Compare size and SHA-256 of files with what is recorded.

    Raises:
        FileNotFoundError: one is missing.
        RetrievalError: one differs.
    """
    for name, recorded in files.items():
        if describe_file(folder / name) != dict(recorded):
            raise damaged(folder, name)


def describe_file(path: Path) -> dict[str, Any]:
    """Return size and SHA-256 of a file."""
    return {"bytes": path.stat().st_size, "sha256": sha256_of_file(path)}


def write_durably(path: Path, write: Callable[[BinaryIO], None]) -> None:
    """Write a file under a temporary name, sync it and rename it."""
    temporary = path.with_name(f".tmp-{path.name}")
    with temporary.open("wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def adopt_durably(path: Path, write: Callable[[str], None], size: Callable[[], int]) -> None:
    """Do as `write_durably` for a library that writes by path and does not notice a full disk.

    Args:
        path: the file.
        write: writes under the path it is given.
        size: how many bytes that must have been.

    Raises:
        OSError: fewer bytes arrived.
    """
    temporary = path.with_name(f".tmp-{path.name}")
    write(str(temporary))
    arrived = temporary.stat().st_size if temporary.exists() else 0
    if arrived != size():
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)


def is_ours(name: str) -> bool:
    """Return whether a file of that name is one an index is made of, or was to be."""
    return name in (MANIFEST, BUILDING) or _OURS.fullmatch(name) is not None


def remove_unreferenced(folder: Path, keep: Iterable[str]) -> None:
    """Remove files of ours that no manifest names; files that are not ours stay."""
    kept = set(keep)
    for path in folder.iterdir():
        if path.name not in kept and _OURS.fullmatch(path.name):
            path.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make renames in a folder survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def explained_writes(folder: Path) -> Iterator[None]:
    """Turn what the system refuses into one `RetrievalError`."""
    try:
        yield
    except OSError as error:
        held, advice = " What it held before is intact.", "Free some space or choose another disk"
        if error.errno in (errno.EEXIST, errno.ENOTDIR):
            held, advice = "", "A file stands where a folder should be: name another folder"
        elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            advice = "Let this user write there, or name another folder"
        raise RetrievalError(
            f"the index '{folder}' cannot be written ({error.strerror or error}).{held} "
            f"{advice}, then run the same command again."
        ) from error


def read_signed(path: Path) -> dict[str, Any] | None:
    """Return a JSON object that carries its own hash; None if it is damaged."""
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        signature = content.pop("signature")
        return content if signature == sha256_of_json(content) else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def write_signed(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON object that carries its own hash."""
    plain = json.loads(json.dumps(content))
    write_json(path, {**plain, "signature": sha256_of_json(plain)})


def damaged(folder: Path, name: str) -> RetrievalError:
    """Say that a file of an index is missing or not as it was written."""
    return RetrievalError(
        f"the index '{folder}': {name} is missing or damaged (its SHA-256 is not the recorded one). "
        "Put the file back from a copy, or remove the folder and build the index anew."
    )


def unreadable(folder: Path, error: OSError | ValueError) -> RetrievalError:
    """Say why a folder cannot be read as an index."""
    reason = getattr(error, "strerror", None) or error
    advice = "Build it anew."
    if isinstance(error, NotADirectoryError):
        advice = "Name the folder of an index."
    elif isinstance(error, PermissionError):
        advice = "Let this user read it."
    return RetrievalError(f"the index '{folder}' cannot be read ({reason}). {advice}")


def library_versions() -> dict[str, str]:
    """Return the versions of what decides the content of an index."""
    from importlib.metadata import version

    return {name: version(name) for name in ("peft-rag", "hnswlib", "numpy", "pyarrow", "sentence-transformers")}
