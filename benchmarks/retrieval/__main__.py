"""Measure the retrieval engine: ``python -m benchmarks.retrieval --documents 100000 --output benchmarks/results/…``."""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.retrieval import data, epoch, memory, searchers
from benchmarks.retrieval.searchers import Searcher
from benchmarks.retrieval.table import markdown
from peft_rag.benchmark.provenance import machine
from peft_rag.corpus import Document
from peft_rag.files import write_json
from peft_rag.retrieval.manifest import StoreSettings
from peft_rag.retrieval.snapshot import Snapshot
from peft_rag.retrieval.store import IndexStore
from peft_rag.retrieval.vectors import exact_search

K = 10
PLAIN = StoreSettings(exact_below=1000)
COMPACT = StoreSettings.compact(exact_below=1000)
_EFS = sorted({round(10 * 1.15**step) for step in range(45)})


@dataclass(frozen=True)
class Speed:
    """How fast an engine reaches a recall.

    Attributes:
        name: of the engine.
        ef: the smallest that reaches the recall on half of the queries; None for exact search.
        recall: recall@k on the other half.
        queries_per_second: median over the rounds.
        slowest: of the rounds.
        fastest: of the rounds.
    """

    name: str
    ef: int | None
    recall: float
    queries_per_second: float
    slowest: float
    fastest: float


def recall(found: NDArray[np.int64], exact: NDArray[np.int64]) -> float:
    """Return the share of exact neighbours ``(Q, k)`` that were found."""
    pairs = zip(found.tolist(), exact.tolist(), strict=True)
    return statistics.fmean(len(set(ours) & set(theirs)) / len(theirs) for ours, theirs in pairs)


def tune(searcher: Searcher, queries: NDArray[np.float32], exact: NDArray[np.int64], wanted: float) -> int | None:
    """Set and return the smallest ef by which an engine reaches a recall."""
    if searcher.set_ef is None:
        return None
    for ef in _EFS:
        searcher.set_ef(ef)
        if recall(searcher.search(queries, K), exact) >= wanted:
            return ef
    raise SystemExit(f"{searcher.name} does not reach recall {wanted} with ef {_EFS[-1]}")


def compare(
    engines: Iterable[tuple[Searcher, float]], queries: NDArray[np.float32], exact: NDArray[np.int64], rounds: int
) -> list[Speed]:
    """Time engines turn by turn, each at the ef that reaches its recall on the first half of the queries."""
    half = len(queries) // 2
    ready = [(engine, tune(engine, queries[:half], exact[:half], wanted)) for engine, wanted in engines]
    times: dict[str, list[float]] = {engine.name: [] for engine, _ in ready}
    for number in range(rounds):
        for engine, ef in ready if number % 2 else reversed(ready):
            _set(engine, ef)
            times[engine.name].append(_seconds(partial(engine.search, queries[half:], K)))
    rows = []
    for engine, ef in ready:
        _set(engine, ef)
        rates = sorted((len(queries) - half) / seconds for seconds in times[engine.name])
        reached = recall(engine.search(queries[half:], K), exact[half:])
        rows.append(Speed(engine.name, ef, reached, statistics.median(rates), rates[0], rates[-1]))
    return rows


def _set(engine: Searcher, ef: int | None) -> None:
    """Set an engine's ef again: engines over one graph share it."""
    if engine.set_ef is not None and ef is not None:
        engine.set_ef(ef)


def _seconds(call: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


def measure_building(known: data.Data, folder: Path) -> dict[str, Any]:
    """Time what building, adding and deleting cost besides encoding."""
    measured: dict[str, Any] = {"encoding_seconds": known.encoding_seconds * len(known.documents)}
    for name, settings in (("plain", PLAIN), ("compact", COMPACT)):
        begun = time.perf_counter()
        store = IndexStore.build(folder / name, known.documents, known.encoder, settings)
        seconds = time.perf_counter() - begun
        ratio = 1 + seconds / measured["encoding_seconds"]
        measured[name] = {"seconds": seconds, "ratio": ratio, "bytes": store.info()["bytes"]}
    return measured


def measure_changes(known: data.Data, folder: Path) -> dict[str, float]:
    """Time adding and deleting a thousand documents at once, and one, besides encoding."""
    copy = folder / "changed"
    shutil.copytree(folder / "plain", copy)
    store = IndexStore.open(copy, known.encoder)
    new = [Document(f"new{number}", one.text) for number, one in enumerate(known.documents[:1001])]
    seconds = {
        "add_1000": _seconds(lambda: store.add(new[:1000])),
        "add_1": _seconds(lambda: store.add(new[1000:])),
        "delete_1000": _seconds(lambda: store.delete([one.id for one in new[:1000]])),
        "delete_1": _seconds(lambda: store.delete(["new1000"])),
    }
    shutil.rmtree(copy)
    return seconds


def measure_opening(folder: Path) -> dict[str, Any]:
    """Time opening an index, every hash and known query checked, with its files in the page cache and without."""
    files = [path for path in folder.iterdir() if path.is_file()]
    warm = min(_seconds(lambda: Snapshot.open(folder)) for _ in range(3))
    for path in files:
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    cold = _seconds(lambda: Snapshot.open(folder))
    graph = next(folder.glob("graph-*.hnsw"))
    bare = min(_seconds(lambda: searchers.load_hnswlib(graph, _graph_dimension(folder))) for _ in range(3))
    return {"warm": warm, "cold": cold, "graph_alone": bare, "bytes": sum(path.stat().st_size for path in files)}


def _graph_dimension(folder: Path) -> int:
    manifest = Snapshot.open(folder, check=False).manifest
    return manifest.settings.graph_dimensions or manifest.dimension


def measure_memory(known: data.Data, folder: Path, speeds: Iterable[Speed]) -> dict[str, Any]:
    """Measure what an opened index adds to a process, for bare hnswlib and both forms of ours."""
    efs = {speed.name: speed.ef for speed in speeds}
    queries = folder / "queries.npy"
    np.save(queries, known.queries)
    kinds = {
        "hnswlib": ("hnswlib", "plain"),
        "peft-rag": ("peft-rag", "plain"),
        "peft-rag compact": ("peft-rag", "compact"),
    }
    return {
        name: memory.measure(kind, folder / index, queries, efs[name] or 0, K) for name, (kind, index) in kinds.items()
    }


def run(documents: int, queries: int, rounds: int, steps: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Measure everything over so many documents and queries, and an epoch of so many steps."""
    known = data.load(documents, queries)
    say(f"{len(known.documents):,} sentences encoded, {1 / known.encoding_seconds:,.0f} a second")
    exact = exact_search(known.queries, known.vectors, K).positions
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent)
        building = measure_building(known, folder)
        say(f"built: {building}")
        plain, compact = (IndexStore.open(folder / name, known.encoder) for name in ("plain", "compact"))
        engines = [
            (searchers.raw_hnswlib(_graph(plain)), 0.99),
            (searchers.positions("peft-rag", plain), 0.99),
            (searchers.documents("peft-rag, with documents", plain), 0.99),
            (searchers.positions("peft-rag compact", compact), 0.98),
            (searchers.faiss_hnsw(known.vectors, PLAIN.M, PLAIN.ef_construction), 0.99),
            (searchers.faiss_exact(known.vectors), 1.0),
            (searchers.our_exact(known.vectors), 1.0),
        ]
        speeds = compare([(engine, wanted) for engine, wanted in engines if engine], known.queries, exact, rounds)
        for speed in speeds:
            say(str(speed))
        return {
            "documents": documents,
            "queries": queries,
            "dimension": known.vectors.shape[1],
            "k": K,
            "settings": {"plain": asdict(PLAIN), "compact": asdict(COMPACT)},
            "search": [asdict(speed) for speed in speeds],
            "building": building,
            "changes": measure_changes(known, folder),
            "opening": {name: measure_opening(folder / name) for name in ("plain", "compact")},
            "memory": measure_memory(known, folder, speeds),
            "epoch": epoch.measure(steps, rounds=5),
            "machine": machine(),
            "versions": {
                name: version(name) for name in ("peft-rag", "hnswlib", "numpy", "torch", "sentence-transformers")
            },
            "command": " ".join(["python -m benchmarks.retrieval", *sys.argv[1:]]),
        }


def _graph(store: IndexStore) -> Any:
    """Return the graph of an index as hnswlib has it."""
    assert store.snapshot.graph is not None
    return store.snapshot.graph.graph


def main() -> None:
    """Read the flags, measure, print the table, and write the result where it is wanted."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--documents", type=int, default=100_000, help="sentences indexed (100000; 10000 is the short version)"
    )
    parser.add_argument("--queries", type=int, default=4000, help="half to choose ef on, half to measure on (4000)")
    parser.add_argument("--rounds", type=int, default=7, help="times each engine is timed (7)")
    parser.add_argument("--steps", type=int, default=16, help="steps of the epochs that are timed (16)")
    parser.add_argument("--output", type=Path, help="write the result here as JSON")
    known = parser.parse_args()
    result = run(
        known.documents, known.queries, known.rounds, known.steps, lambda line: print(line, file=sys.stderr, flush=True)
    )
    if known.output:
        write_json(known.output, result)
    print(markdown(result), end="")


if __name__ == "__main__":
    main()
