"""What a terminal shows of a benchmark: a table a data set, and what it says."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from peft_rag.benchmark.report.analysis import Table, overall_ranks
from peft_rag.benchmark.report.checks import notices
from peft_rag.benchmark.report.grids import Column, Grid, results_grid
from peft_rag.benchmark.report.results import Results
from peft_rag.benchmark.report.words import findings, seeds_in_words

_LEFT_OUT = {"against no retrieval", "artefact", "peak memory"}


def terminal_lines(results: Results, tables: Sequence[Table]) -> Iterator[str]:
    """Yield the lines of the report, one table a data set, in percent."""
    for sentence in notices(results):
        yield f"note: {sentence}"
    for table in tables:
        yield ""
        yield f"{table.label}: in percent on {table.examples:,} test examples, {seeds_in_words(len(table.seeds))}"
        yield from aligned(_narrow(results_grid(table)))
        yield table.leaks.in_words()
        yield from findings(table)
    placed = overall_ranks(tables) if len(tables) > 1 else {}
    if placed:
        yield ""
        yield f"average ranks over {len(tables)} data sets:"
        yield from (f"  {one.average:5.2f}  {key.label}" for key, one in placed.items())


def aligned(grid: Grid) -> list[str]:
    """Return a grid as lines whose columns stand below one another."""
    lines = [grid.titles, *grid.texts()]
    widths = [max(len(line[place]) for line in lines) for place in range(len(grid.columns))]
    return ["  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in lines]


def _narrow(grid: Grid) -> Grid:
    kept: list[Column] = [column for column in grid.columns if column.title not in _LEFT_OUT]
    return Grid(kept, grid.results)
