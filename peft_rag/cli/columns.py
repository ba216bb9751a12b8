"""Tables in plain text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def columns(header: Sequence[str], rows: Sequence[Sequence[str]], widest: int = 78) -> Iterable[str]:
    """Lay rows out in columns as wide as their longest cell; the last column is left as long as it is."""
    cells = [header, *rows]
    widths = [min(max(len(row[column]) for row in cells), widest) for column in range(len(header))]
    for row in cells:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
