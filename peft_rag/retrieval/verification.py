"""What is checked of an index beyond its hashes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from peft_rag.errors import RetrievalError
from peft_rag.retrieval.precision import largest_error, pack, unpack
from peft_rag.retrieval.shards import encode_documents, id_keys
from peft_rag.retrieval.snapshot import Snapshot

if TYPE_CHECKING:
    from peft_rag.retrieval.base import Encoder


def verify(folder: Path, snapshot: Snapshot, encoder: Encoder) -> dict[str, Any]:
    """Check ids, vectors and graph of an index that has been opened, and that its encoder still gives its vectors.

    Args:
        folder: the index, for messages.
        snapshot: the index, its hashes and known queries already checked.
        encoder: the encoder it was built with.

    Returns:
        How many files, documents and known queries were checked; the largest difference of a vector encoded again;
        and the share of exact neighbours that the graph finds for the known queries.

    Raises:
        RetrievalError: something is wrong; the message says what.
    """
    _check_rows(folder, snapshot)
    difference, recall = _check_encoder(folder, snapshot, encoder)
    manifest = snapshot.manifest
    return {
        "files": len(manifest.files),
        "documents": manifest.count,
        "known_queries": len(manifest.known),
        "largest_difference": difference,
        "graph_recall": recall,
    }


def _check_rows(folder: Path, snapshot: Snapshot) -> None:
    import numpy as np

    keys = []
    for shard in snapshot.shards.shards:
        free = np.flatnonzero(~snapshot.deleted[shard.start : shard.stop])
        ids = shard.table.column("id").to_pylist()
        if len(ids) != shard.entry.rows or not np.array_equal(id_keys(ids), shard.keys):
            raise RetrievalError(f"the index '{folder}': {shard.entry.name} disagrees about its ids. Build it anew.")
        if not np.isfinite(unpack(shard.stored)).all():
            raise RetrievalError(f"the index '{folder}': {shard.entry.name} holds NaN or infinity. Build it anew.")
        keys.append(shard.keys[free])
    every = np.concatenate(keys) if keys else np.empty(0, np.uint64)
    if len(np.unique(every)) != len(every) and len({one.id for one in snapshot.documents()}) != len(every):
        raise RetrievalError(f"the index '{folder}' holds two documents of one id. Build it anew.")


def _check_encoder(folder: Path, snapshot: Snapshot, encoder: Encoder) -> tuple[float, float]:
    import numpy as np

    from peft_rag.retrieval.quality import graph_recall

    rows = np.array([known["row"] for known in snapshot.manifest.known], dtype=np.int64)
    if not len(rows):
        return 0.0, 1.0
    documents, stored = snapshot.shards.documents(rows), snapshot.shards.vectors(rows)
    settings = snapshot.manifest.settings
    again = unpack(pack(encode_documents(documents, encoder, settings.metric), settings.precision))
    difference = float(np.abs(again - stored).max())
    if difference > largest_error(stored, settings.precision):
        raise RetrievalError(
            f"the index '{folder}': its encoder '{encoder.name}' now gives vectors that differ from the stored ones by "
            f"{difference:.3g}. Another version of sentence-transformers or torch may be why; build the index anew."
        )
    k = min(10, len(snapshot))
    found, exact = snapshot.search(stored, k), snapshot.search(stored, k, exact=True)
    return difference, graph_recall(found, exact)
