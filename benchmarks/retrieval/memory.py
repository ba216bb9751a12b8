"""What an opened index adds to a process of its own; run by `measure`, prints one JSON object."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.retrieval import searchers
from benchmarks.retrieval.data import KnownVectors
from peft_rag.corpus import Document
from peft_rag.retrieval.manifest import StoreSettings
from peft_rag.retrieval.snapshot import Snapshot
from peft_rag.retrieval.store import IndexStore

_FEW = 512


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
    _warm_up(queries[:_FEW])
    before, begun = _memory(), time.perf_counter()
    if kind == "hnswlib":
        searcher = searchers.raw_hnswlib(searchers.load_hnswlib(next(folder.glob("graph-*.hnsw")), queries.shape[1]))
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


def _warm_up(vectors: NDArray[np.float32]) -> None:
    """Use a small index once, so that imports, threads and buffers of the libraries are not counted."""
    texts = [str(number) for number in range(len(vectors))]
    encoder = KnownVectors(SimpleNamespace(name="", fingerprint="", dimension=vectors.shape[1]), texts, vectors)
    settings = StoreSettings.compact(exact_below=len(texts))
    with tempfile.TemporaryDirectory() as folder:
        small = IndexStore.build(Path(folder) / "index", [Document(text, text) for text in texts], encoder, settings)
        small.search_vectors(vectors, 1)


if __name__ == "__main__":
    _main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5]))
