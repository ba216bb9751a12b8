"""What an opened index adds to a process of its own; run by `measure`, prints one JSON object."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import hnswlib
import numpy as np
import pyarrow.ipc  # noqa: F401 - loaded beforehand, so that its own size is not counted

from benchmarks.retrieval import searchers
from peft_rag.retrieval.snapshot import Snapshot
from peft_rag.retrieval.store import IndexStore


def measure(kind: str, folder: Path, queries: Path, ef: int, k: int) -> dict[str, Any]:
    """Open an index in a process of its own, search it, and return what that took.

    Args:
        kind: ``hnswlib`` for the bare graph file, or ``peft-rag``.
        folder: an index folder.
        queries: a ``.npy`` file of vectors ``(Q, D)``.
        ef: candidates looked at for each query.
        k: neighbours of each.

    Returns:
        ``anonymous`` and ``file`` (bytes of memory added, the latter given back when others need it), and ``seconds``
        to open it.
    """
    words = [sys.executable, "-m", __name__, kind, str(folder), str(queries), str(ef), str(k)]
    done = subprocess.run(words, check=True, capture_output=True, text=True)
    measured: dict[str, Any] = json.loads(done.stdout)
    return measured


def _memory() -> dict[str, int]:
    lines = Path("/proc/self/status").read_text().splitlines()
    held = dict(line.split(":", 1) for line in lines)
    return {"anonymous": int(held["RssAnon"].split()[0]) * 1024, "file": int(held["RssFile"].split()[0]) * 1024}


def _main(kind: str, folder: Path, queries_file: Path, ef: int, k: int) -> None:
    queries = np.load(queries_file)
    # A first product and a first search of something small start the libraries' threads and buffers.
    _ = queries[:64] @ queries[:64].T
    small = hnswlib.Index(space="ip", dim=queries.shape[1])
    small.init_index(max_elements=64)
    small.add_items(queries[:64])
    small.knn_query(queries[:64], k=1)
    before, begun = _memory(), time.perf_counter()
    if kind == "hnswlib":
        searcher = searchers.raw_hnswlib(next(folder.glob("graph-*.hnsw")), queries.shape[1])
        seconds = time.perf_counter() - begun
    else:
        store = IndexStore(folder, Snapshot.open(folder))
        seconds = time.perf_counter() - begun
        searcher = searchers.positions("peft-rag", store)
    assert searcher.set_ef is not None
    searcher.set_ef(ef)
    for start in range(0, len(queries), 256):
        searcher.search(queries[start : start + 256], k)
    after = _memory()
    print(json.dumps({name: after[name] - before[name] for name in after} | {"seconds": seconds}))


if __name__ == "__main__":
    _main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5]))
