"""What a row costs, averaged over its seeds, and which rows nothing beats at their cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from peft_rag.benchmark.report.cells import OFF, RETRIEVAL_ALONE
from peft_rag.benchmark.report.results import Row

_TRAINED = {"trainable_parameters", "artefact_bytes", "train_seconds"}
_INDEX = {"index_bytes", "index_seconds"}


@dataclass(frozen=True)
class Cost:
    """One kind of cost.

    Attributes:
        name: as machines call it.
        title: as people do.
        unit: ``count``, ``bytes``, ``seconds``, ``milliseconds`` or ``rate``.
        path: where a cell's costs hold it.
    """

    name: str
    title: str
    unit: str
    path: tuple[str, ...]


COSTS = (
    Cost("trainable_parameters", "trainable parameters", "count", ("trainable_parameters",)),
    Cost("artefact_bytes", "artefact", "bytes", ("artefact_bytes",)),
    Cost("peak_memory_bytes", "peak memory", "bytes", ("peak_memory_bytes",)),
    Cost("device_peak_memory_bytes", "peak memory of the accelerator", "bytes", ("device_peak_memory_bytes",)),
    Cost("train_seconds", "training time", "seconds", ("train_seconds",)),
    Cost("examples_per_second", "training examples/s", "rate", ("examples_per_second",)),
    Cost("tokens_per_second", "prediction tokens/s", "rate", ("tokens_per_second",)),
    Cost("latency_p50_ms", "one prediction, median", "milliseconds", ("latency_ms", "with", "p50")),
    Cost("latency_p95_ms", "one prediction, 95th percentile", "milliseconds", ("latency_ms", "with", "p95")),
    Cost("index_bytes", "index", "bytes", ("index_bytes",)),
    Cost("index_seconds", "building the index", "seconds", ("index_seconds",)),
    Cost("load_seconds", "loading", "seconds", ("load_seconds",)),
)
PLOTTED = ("trainable_parameters", "artefact_bytes", "peak_memory_bytes", "train_seconds")
BY_NAME = {cost.name: cost for cost in COSTS}


def costs_of(row: Row) -> dict[str, float]:
    """Return a row's costs by name, each the mean over its seeds that have it; what was not measured is left out."""
    found = {}
    for cost in COSTS:
        values = [value for seed in row.done if (value := _value(row, seed, cost)) is not None]
        if values:
            found[cost.name] = sum(values) / len(values)
    return found


def pareto_front(points: Mapping[str, tuple[float, float]]) -> list[str]:
    """Return the points that nothing beats, cheapest first: none is as cheap and better, or as good and cheaper.

    >>> pareto_front({"a": (1, 0.8), "b": (2, 0.9), "c": (3, 0.9), "d": (1, 0.7)})
    ['a', 'b']

    Args:
        points: cost and quality by name.
    """
    front: list[str] = []
    best = float("-inf")
    cheapest_first: Sequence[str] = sorted(points, key=lambda name: (points[name][0], -points[name][1]))
    last = None
    for name in cheapest_first:
        if points[name][1] > best or points[name] == last:
            front.append(name)
            best, last = points[name][1], points[name]
    return front


def _value(row: Row, seed: int, cost: Cost) -> float | None:
    """Read a cost of one seed; a row without a model, or that reads another row's training, has some by its nature."""
    arm, path = row.arms[seed], cost.path
    if arm == RETRIEVAL_ALONE and cost.name not in _INDEX:
        return 0.0 if cost.name in _TRAINED else None
    if arm == OFF and cost.name in _INDEX:
        return None
    if path[0] == "latency_ms" and arm == OFF:
        path = ("latency_ms", "without", path[2])
    value: Any = row.cells[seed].costs
    for part in path:
        value = value.get(part) if isinstance(value, Mapping) else None
    return float(value) if isinstance(value, (int, float)) else None
