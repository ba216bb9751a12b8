"""Markdown tables, and where the measurements of a benchmark are stored."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_RESULTS = Path(__file__).parent / "results"
_MB = 1e6


def stored(benchmark: str) -> dict[str, dict[str, Any]]:
    """Return every stored measurement of a benchmark by its name."""
    paths = sorted((_RESULTS / benchmark).glob("*.json"))
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in paths}


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Return a table, one line a row."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(str(cell) for cell in line)} |\n" for line in lines)


def megabytes(count: float) -> str:
    """Return bytes as whole megabytes."""
    return f"{count / _MB:,.0f} MB"
