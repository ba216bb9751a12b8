"""Print the stored results as Markdown tables: ``python benchmarks/table.py`` for all, with a name for one run's arms.

A stored result is the ``metrics.json`` of one run of ``peft-rag train``; ``benchmarks/README.md`` has the commands.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from peft_rag.card import results_table

RESULTS = Path(__file__).parent / "results"
_COLUMNS = ("run", "without retrieval", "with retrieval", "retrieval alone", "trained", "artefact", "training")


def stored() -> dict[str, dict[str, Any]]:
    """Return every stored result by its name."""
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(RESULTS.glob("*.json"))}


def summary(results: dict[str, dict[str, Any]]) -> str:
    """Return one row a run: accuracy in percent with its 95% interval, and what it cost."""
    rows = [_COLUMNS, ("---",) * len(_COLUMNS)]
    for name, metrics in results.items():
        arms = metrics["arms"]
        scores = [_accuracy(arms.get(arm)) for arm in ("without_retrieval", "with_retrieval", "retrieval_alone")]
        trained = f"{metrics['trainable_parameters']:,} ({metrics['trainable_percent']:.2f}%)"
        costs = (trained, f"{metrics['artefact_bytes'] / 1000:,.0f} kB", f"{metrics['train_seconds']:.0f} s")
        rows.append((f"`{name}`", *scores, *costs))
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def arms(metrics: dict[str, Any]) -> str:
    """Return one row an arm of one run: every metric in percent with its 95% interval."""
    return results_table(metrics["arms"])


def _accuracy(scores: dict[str, dict[str, float]] | None) -> str:
    if scores is None:
        return ""
    value, low, high = (100 * scores["accuracy"][end] for end in ("value", "low", "high"))
    return f"{value:.1f} [{low:.1f}, {high:.1f}]"


if __name__ == "__main__":
    print(arms(stored()[sys.argv[1]]) if len(sys.argv) > 1 else summary(stored()), end="")
