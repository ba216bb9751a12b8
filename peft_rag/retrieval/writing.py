"""How an index is changed: shards are written beside it, and one commit makes them its content."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peft_rag.corpus import Document
from peft_rag.errors import FingerprintError, RetrievalError
from peft_rag.retrieval.base import Encoder
from peft_rag.retrieval.graph import StoredGraph, refreshed
from peft_rag.retrieval.locking import LOCK, writer_lock
from peft_rag.retrieval.manifest import (
    BUILDING,
    Manifest,
    ShardEntry,
    StoreSettings,
    describe_file,
    explained_writes,
    is_ours,
    library_versions,
    read_signed,
    remove_unreferenced,
    sync_folder,
    write_durably,
    write_manifest,
    write_signed,
)
from peft_rag.retrieval.precision import pack
from peft_rag.retrieval.shards import (
    Shard,
    Shards,
    batches,
    documents_digest,
    encode_documents,
    twice,
    write_shard,
)
from peft_rag.retrieval.snapshot import Snapshot

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@contextmanager
def writing(folder: Path, doing: str) -> Iterator[None]:
    """Be the one writer of a folder while the block runs.

    Raises:
        RetrievalError: another process is, or the system refuses to write.
    """
    with explained_writes(folder):
        if doing == "build":
            folder.mkdir(parents=True, exist_ok=True)
        with writer_lock(folder, doing):
            yield


@dataclass
class Building:
    """A first build under way: which shards are finished.

    Attributes:
        folder: the index to be.
        recipe: encoder and settings; shards of another recipe are of no use.
        shards: the finished shards.
        files: size and SHA-256 of their files.
    """

    folder: Path
    recipe: dict[str, Any]
    shards: list[ShardEntry] = field(default_factory=list)
    files: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def resume(cls, folder: Path, encoder: dict[str, Any], settings: StoreSettings) -> Building:
        """Read how far a build had come; from the start if there was none, or another.

        Raises:
            RetrievalError: the folder holds files that no build wrote.
        """
        strange = sorted(path.name for path in folder.iterdir() if path.name != LOCK and not is_ours(path.name))
        if strange:
            raise RetrievalError(
                f"'{folder}' already holds other files ({', '.join(strange[:3])}). Name an empty or a new folder."
            )
        recipe = {"encoder": encoder, "settings": asdict(settings)}
        kept = read_signed(folder / BUILDING) or {}
        building = cls(folder, recipe)
        if kept.get("recipe") == recipe:
            building.shards = [ShardEntry(**shard) for shard in kept["shards"]]
            building.files = kept["files"]
        remove_unreferenced(folder, building.files)
        return building

    def finished(self, number: int, batch: Sequence[Document]) -> ShardEntry | None:
        """Return a finished shard if it holds exactly these documents and its files are intact."""
        if number >= len(self.shards) or self.shards[number].digest != documents_digest(batch):
            return None
        shard = self.shards[number]
        try:
            intact = all(describe_file(self.folder / name) == self.files[name] for name in shard.files)
        except FileNotFoundError:
            intact = False
        return shard if intact else None

    def done(self, shards: Sequence[ShardEntry]) -> None:
        """Remember that these shards are finished."""
        last = shards[-1]
        if last not in self.shards:
            self.files = self.files | {name: describe_file(self.folder / name) for name in last.files}
            self.shards = list(shards)
            content = {"recipe": self.recipe, "shards": [asdict(one) for one in shards], "files": self.files}
            write_signed(self.folder / BUILDING, content)

    def forget(self) -> None:
        """Remove the note of a build that has been committed."""
        (self.folder / BUILDING).unlink(missing_ok=True)


def write_shards(
    folder: Path,
    generation: int,
    documents: Iterable[Document],
    encoder: Encoder,
    settings: StoreSettings,
    progress: str | None,
    *,
    check: Callable[[Sequence[str]], None] = lambda ids: None,
    building: Building | None = None,
) -> list[ShardEntry]:
    """Encode documents and write them as shards, one after the other.

    Args:
        folder: the index.
        generation: numbers the files.
        documents: what to write.
        encoder: what turns texts into vectors.
        settings: the metric and the size of a shard.
        progress: the title of a progress bar; none without.
        check: refuses ids.
        building: knows what an interrupted build has finished, and is told what is.

    Raises:
        CorpusError: a document cannot be stored, or two have one id.
    """
    from tqdm import tqdm

    shards: list[ShardEntry] = []
    opened: list[Shard] = []
    with tqdm(desc=progress, unit="document", disable=progress is None) as bar:
        for number, batch in enumerate(batches(documents, settings.shard_size)):
            ids = [document.id for document in batch]
            check(ids)
            taken = Shards(opened, encoder.dimension).find(ids)
            if taken:
                name = min(taken)
                raise twice(name, taken[name], opened[-1].stop + ids.index(name))
            shard = building.finished(number, batch) if building else None
            if shard is None:
                vectors = encode_documents(batch, encoder, settings.metric)
                stored = pack(vectors, settings.precision)
                shard = write_shard(folder, shard_name(generation, number), batch, stored)
            shards.append(shard)
            opened.append(Shard(folder, shard, opened[-1].stop if opened else 0))
            if building:
                building.done(shards)
            bar.update(len(batch))
    return shards


def copy_shards(folder: Path, present: Snapshot, progress: str | None) -> list[ShardEntry]:
    """Write the documents that are not deleted, with their vectors, as new shards."""
    from tqdm import tqdm

    rows, size = present.rows, present.manifest.settings.shard_size
    shards: list[ShardEntry] = []
    with tqdm(total=len(rows), desc=progress, unit="document", disable=progress is None) as bar:
        for number, start in enumerate(range(0, len(rows), size)):
            batch = rows[start : start + size]
            name = shard_name(present.manifest.generation + 1, number)
            shards.append(write_shard(folder, name, present.shards.documents(batch), present.shards.stored(batch)))
            bar.update(len(batch))
    return shards


def commit(
    folder: Path, old: Manifest, shards: Sequence[ShardEntry], deleted: NDArray[np.bool_], progress: str | None
) -> Snapshot:
    """Make shards that are written, and a new state of deletions, the content of the index.

    Args:
        folder: the index.
        old: what the index was; its files are kept as far as the new content has them.
        shards: all shards, old and new.
        deleted: which of their rows are deleted, ``(N,)``.
        progress: the title of a progress bar; none without.
    """
    import numpy as np

    generation = old.generation + 1
    opened = Shards.open(folder, shards, old.dimension)
    title = f"{progress}: graph" if progress else None
    entry = refreshed(folder, generation, old.graph, opened, deleted, old.settings, title)
    name = f"deleted-{generation:06d}.npy" if deleted.any() else ""
    if name:
        write_durably(folder / name, lambda file: np.save(file, deleted, allow_pickle=False))
    sync_folder(folder)
    graph = StoredGraph.open(folder, entry, old.dimension, old.settings) if entry else None
    count = len(deleted) - int(deleted.sum())
    manifest = Manifest(
        generation,
        old.encoder,
        old.dimension,
        old.settings,
        tuple(shards),
        name,
        entry,
        count,
        versions=library_versions(),
    )
    manifest = replace(
        manifest,
        files={file: old.files.get(file) or describe_file(folder / file) for file in manifest.names},
        known=Snapshot(manifest, opened, deleted, graph).known_answers(),
    )
    write_manifest(folder, manifest)
    remove_unreferenced(folder, manifest.names)
    return Snapshot(manifest, opened, deleted, graph)


def shard_name(generation: int, number: int) -> str:
    """Return the name of a shard, never used before in its folder."""
    return f"shard-{generation:06d}-{number:06d}"


def none_deleted(rows: int) -> NDArray[np.bool_]:
    """Return the mark of rows none of which is deleted."""
    import numpy as np

    return np.zeros(rows, dtype=bool)


def encoder_record(encoder: Encoder) -> dict[str, Any]:
    """Return what an index remembers of its encoder."""
    return {
        "name": encoder.name,
        "revision": getattr(encoder, "revision", None),
        "fingerprint": encoder.fingerprint,
        "dimension": encoder.dimension,
        "max_length": getattr(encoder, "max_length", None),
    }


def matching(encoder: Encoder, manifest: Manifest, folder: Path) -> Encoder:
    """Return an encoder if it is the one an index was built with.

    Raises:
        FingerprintError: it is another, or gives vectors of another dimension.
    """
    record = manifest.encoder
    if encoder.dimension != manifest.dimension:
        raise FingerprintError(
            f"the index '{folder}' holds vectors of dimension {manifest.dimension}, but the encoder '{encoder.name}' "
            f"gives {encoder.dimension}. Use '{record['name']}', with which it was built, or build it anew."
        )
    if encoder.fingerprint != record["fingerprint"]:
        raise FingerprintError(
            f"the index '{folder}' was built with the encoder '{record['name']}' {record['fingerprint'][:19]}…, but "
            f"'{encoder.name}' is {encoder.fingerprint[:19]}…. Use that encoder, or build the index anew."
        )
    return encoder
