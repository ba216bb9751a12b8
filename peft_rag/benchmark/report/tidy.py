"""The results as CSV: one row for each cell and arm, so that any tool can go on from there."""

from __future__ import annotations

import csv
import io
from typing import Any

from peft_rag.benchmark.report.cells import Arm, Cell
from peft_rag.benchmark.report.results import Results
from peft_rag.evaluation.statistics import MEAN

_COSTS = (
    "trainable_parameters",
    "artefact_bytes",
    "peak_memory_bytes",
    "device_peak_memory_bytes",
    "train_seconds",
    "examples_per_second",
    "steps",
    "tokens_per_second",
    "index_bytes",
    "index_seconds",
    "load_seconds",
    "off_difference",
)


def tidy_csv(results: Results) -> str:
    """Return one row for each cell and arm, and one without an arm for each cell that is not done.

    Scores and ``right``, the mean of how right each answer is where answers are counted so, are shares, but for those
    that are none, such as perplexity; costs are the whole cell's.
    """
    metrics = sorted({name for cell in results.cells for arm in cell.arms.values() for name in arm.scores})
    rows = [row for cell in results.cells for row in _rows(cell)]
    text = io.StringIO()
    names = [*_about(results.cells[0]), "arm", "test_examples", "right", *metrics, *_COSTS]
    writer = csv.DictWriter(text, names, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _rows(cell: Cell) -> list[dict[str, Any]]:
    about = _about(cell)
    costs = {name: cell.costs.get(name, "") for name in _COSTS}
    measured = [
        {"arm": name, "test_examples": len(arm.tallies), "right": _right(arm), **arm.scores}
        for name, arm in cell.arms.items()
    ]
    return [about | arm | costs for arm in measured or [{}]]


def _right(arm: Arm) -> float | str:
    return arm.value if arm.statistic is MEAN else ""


def _about(cell: Cell) -> dict[str, Any]:
    return {
        "suite": cell.suite,
        "dataset": cell.setting.dataset,
        "shots": cell.setting.shots,
        "backbone": cell.setting.backbone,
        "method": cell.method,
        "fusion": cell.fusion,
        "seed": cell.seed,
        "external": cell.external,
        "status": cell.status,
        "error": cell.error,
        "commit": cell.commit,
        "dirty": cell.dirty,
        "started": cell.started,
        "seconds": cell.seconds,
    }
