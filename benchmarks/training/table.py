"""Stored measurements of training as Markdown: ``python -m benchmarks.training.table`` prints them all.

``--write`` puts those that the page shows between their markers.
"""

from __future__ import annotations

import re
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.markdown import megabytes, stored, table
from benchmarks.training.side import BARE

_HEAD = ("examples/s", "÷ bare", "peak memory", "÷ bare", "first step after", "− bare", "accuracy")
_PAGE = Path(__file__).parents[1] / "README.md"
SHOWN = {"training": "default", "training on an accelerator": "accelerator"}
"""The markers of the page, and the measurement that stands behind each."""

Rounds = Sequence[Mapping[str, float]]


def markdown(result: Mapping[str, Any]) -> str:
    """Return the tables of one measurement: medians over the rounds with their range."""
    return "\n".join(_comparison(one) for one in result["comparisons"])


def write(page: Path, marker: str, result: Mapping[str, Any]) -> None:
    """Put the tables of a measurement into a page, between its markers."""
    text = page.read_text(encoding="utf-8")
    block = f"<!-- {marker} -->\n{markdown(result)}<!-- end -->"
    page.write_text(
        re.sub(rf"<!-- {marker} -->\n.*?<!-- end -->", lambda _: block, text, count=1, flags=re.DOTALL), "utf-8"
    )


def _comparison(compared: Mapping[str, Any]) -> str:
    bare = compared["measured"][BARE]
    rows = [_row(side, rounds, bare) for side, rounds in compared["measured"].items()]
    return table((compared["name"], *_HEAD), rows)


def _row(side: str, rounds: Rounds, bare: Rounds) -> tuple[str, ...]:
    def against(name: str, compare: Callable[[float, float], float], form: str) -> str:
        if rounds is bare:
            return ""
        return _spread([compare(one[name], other[name]) for one, other in zip(rounds, bare, strict=True)], form)

    def ratio(mine: float, theirs: float) -> float:
        return mine / theirs

    return (
        side,
        _spread([one["examples_per_second"] for one in rounds], ",.1f"),
        against("examples_per_second", ratio, ".2f"),
        megabytes(statistics.median(one["peak_memory_bytes"] for one in rounds)),
        against("peak_memory_bytes", ratio, ".2f"),
        _spread([one["startup"] for one in rounds], ".1f", " s"),
        against("startup", lambda mine, theirs: mine - theirs, "+.1f"),
        _spread([100 * one["accuracy"] for one in rounds], ".1f"),
    )


def _spread(values: Sequence[float], form: str, unit: str = "") -> str:
    """Write the median with the range."""
    return f"{statistics.median(values):{form}}{unit} ({min(values):{form}} to {max(values):{form}})"


if __name__ == "__main__":
    for name, result in stored("training").items():
        print(f"{name}\n\n{markdown(result)}")
    if "--write" in sys.argv[1:]:
        for marker, name in SHOWN.items():
            write(_PAGE, marker, stored("training")[name])
