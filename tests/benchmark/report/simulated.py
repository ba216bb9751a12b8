"""Files of a benchmark that nobody ran: how right each method is, and what it costs, is decided here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from peft_rag.files import write_json

METHODS = {
    # name: strength of the method, trained parameters
    "head": (0.0, 4_000),
    "full": (0.95, 22_700_000),
    "bitfit": (0.55, 38_000),
    "adapter": (0.9, 230_000),
    "lora": (1.0, 78_000),
    "prompt-tuning": (0.25, 11_500),
    "ia3": (0.4, 8_600),
}
FUSIONS = {"knn": 0.35, "concat": 0.1}
SEED_NOISE = 0.02
CLASSES = 5
ABSENT: dict[str, Any] = {}


def write_results(
    folder: Path,
    *,
    datasets: tuple[str, ...] = ("wiki-topics", "banking77"),
    methods: tuple[str, ...] = tuple(METHODS),
    fusions: tuple[str, ...] = ("knn", "concat"),
    seeds: tuple[int, ...] = (0, 1, 2),
    examples: int = 300,
    failed: tuple[str, ...] = (),
    diverged: tuple[str, ...] = (),
    changes: dict[str, dict[str, Any]] = ABSENT,
    suite: str = "simulated",
) -> Path:
    """Write the cell files of a suite and return their folder.

    Args:
        folder: of results.
        datasets, methods, fusions, seeds: the grid; the row without retrieval is covered by ``knn``.
        examples: in each test split.
        failed, diverged: names of cells that end so.
        changes: fields to put in place of what a cell's file says, by name of the cell.
        suite: its name.
    """
    place = folder / suite
    for number, dataset in enumerate(datasets):
        world = np.random.default_rng(number)
        targets = world.integers(0, CLASSES, examples)
        difficulty = world.normal(size=examples) + 0.3 * number
        for method in methods:
            taste = 0.4 * np.random.default_rng([number, *map(ord, method)]).normal(size=examples)
            for fusion in fusions:
                for seed in seeds:
                    name = f"{dataset}-{method}-{fusion}-s{seed}"
                    key = {"dataset": dataset, "shots": 0, "backbone": "tiny", "method": method, "fusion": fusion}
                    content = _header(suite, {**key, "seed": seed}, name)
                    if name in failed or name in diverged:
                        error = "the loss is not finite" if name in diverged else "MemoryError: 24 GB were asked for"
                        content |= {"status": "diverged" if name in diverged else "failed", "error": error}
                    else:
                        content |= _measured(method, fusion, seed, targets, difficulty - taste)
                    write_json(place / f"{name}.json", content | changes.get(name, {}))
    return place


def _header(suite: str, cell: dict[str, Any], name: str) -> dict[str, Any]:
    return {
        "format": 1,
        "suite": suite,
        "suite_fingerprint": "sha256:" + "ab" * 32,
        "setting_fingerprint": "sha256:" + "ab" * 32,
        "cell": cell,
        "covers": ["none"] if cell["fusion"] == "knn" else [],
        "status": "done",
        "error": "",
        "command": f"peft-rag train --train \"${{DATA}}/train.jsonl\" --method {cell['method']} --output 'runs/{name}'",
        "commit": "0123456789abcdef0123456789abcdef01234567",
        "dirty": False,
        "machine": {
            "processor": "A processor",
            "cores": 2,
            "memory_bytes": 8 << 30,
            "system": "Linux",
            "device": "cpu",
        },
        "versions": {"peft-rag": "0.1.0", "torch": "2.13.0"},
        "sources": {"peft_rag.training": "aa11"},
        "started": "2026-01-02T03:04:05Z",
        "seconds": 61.5,
    }


def _measured(method: str, fusion: str, seed: int, targets: np.ndarray, hardness: np.ndarray) -> dict[str, Any]:
    strength, parameters = METHODS.get(method, (0.5, 50_000))
    draw = np.random.default_rng([seed, *map(ord, method)])
    own = strength + 0.6 + SEED_NOISE * draw.normal()
    noise = 0.5 * draw.normal(size=len(targets))
    gain = FUSIONS.get(fusion, 0.2)

    def arm(extra: float) -> dict[str, Any]:
        return _arm(targets, own + extra + noise > hardness, seed)

    arms = {
        "untrained": _arm(targets, draw.random(len(targets)) < 1 / CLASSES, seed),
        "retrieval_alone": _arm(
            targets, 0.75 + 0.2 * np.random.default_rng(seed).normal(size=len(targets)) > hardness, seed
        ),
        "off": arm(0.0),
        "retrieved": arm(gain),
        "random": arm(-0.1),
        "shuffled": arm(-0.2),
        "oracle": arm(1.5),
    }
    if fusion == "concat":
        arms["filler"] = arm(-0.02)
    if fusion == "none":
        arms = {name: arms[name] for name in ("untrained", "off")}
    return {
        "tuning": {
            "trials": [
                {"settings": {"learning_rate": rate}, "validation": {"accuracy": 0.5, "loss": 1.0}, "status": "done"}
                for rate in (0.0001, 0.001)
            ],
            "chosen": {"learning_rate": 0.001},
        },
        "main_metric": "accuracy",
        "targets": targets.tolist(),
        "arms": arms,
        "audit": {"threshold": 0.95, "exact": [3, 17], "near": [5, 20, 21]},
        "costs": _costs(parameters, fusion, seed),
    }


def _costs(parameters: int, fusion: str, seed: int) -> dict[str, Any]:
    slow = 1.0 + (fusion == "concat")
    return {
        "trainable_parameters": parameters,
        "artefact_bytes": 4 * parameters + 6_000,
        "tensor_bytes": {"head:weight": 4 * parameters},
        "peak_memory_bytes": int(9e8 + 18 * parameters * slow**0.5 + 1e6 * seed),
        "device_peak_memory_bytes": 0,
        "train_seconds": slow * (20 + 4 * np.log10(parameters) + seed),
        "examples_per_second": 90.0 / slow,
        "steps": 100,
        "tokens_per_second": 9000.0 / slow,
        "latency_ms": {"without": {"p50": 7.0, "p95": 9.0}, "with": {"p50": 9.0 * slow, "p95": 13.0 * slow}},
        "index_bytes": 3_072_000,
        "index_seconds": 6.5,
        "load_seconds": 0.8,
        "off_difference": 0.0,
    }


def _arm(targets: np.ndarray, right: np.ndarray, seed: int) -> dict[str, Any]:
    predictions = np.where(right, targets, (targets + 1 + seed % (CLASSES - 1)) % CLASSES)
    return {
        "scores": {"accuracy": float(right.mean()), "macro_f1": float(right.mean()) - 0.02},
        "predictions": predictions.tolist(),
    }
