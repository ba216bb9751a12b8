"""The report as Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from peft_rag.benchmark.report.analysis import Table, overall_ranks
from peft_rag.benchmark.report.checks import notices
from peft_rag.benchmark.report.grids import Grid, controls_grid, costs_grid, metrics_grid, results_grid
from peft_rag.benchmark.report.results import Results
from peft_rag.benchmark.report.words import EXPLANATIONS, findings, seeds_in_words

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>|#])")


def markdown(results: Results, tables: Sequence[Table]) -> str:
    """Return the report of a suite as Markdown, scores in percent."""
    return "\n".join(_lines(results, tables)) + "\n"


def escaped(text: str) -> str:
    r"""Return text that Markdown shows as it is.

    >>> print(escaped("a|b <script>"))
    a\|b \<script\>
    """
    return _SPECIAL.sub(r"\\\1", text)


def _lines(results: Results, tables: Sequence[Table]) -> Iterator[str]:
    yield f"# {escaped(results.suite)}\n"
    yield from _bullets(notices(results))
    for table in tables:
        yield from _section(table)
    placed = overall_ranks(tables) if len(tables) > 1 else {}
    if placed:
        yield f"## Ranks over {len(tables)} data sets\n"
        titles = ["row", "average rank", *(table.label for table in tables)]
        yield from _table(
            titles,
            [[key.label, f"{one.average:.2f}", *(f"{rank:g}" for rank in one.ranks)] for key, one in placed.items()],
        )
    lacking = [cell for cell in results.cells if not cell.done]
    if lacking:
        yield "## Runs that did not end well\n"
        rows = [[cell.name, cell.status, cell.error] for cell in lacking]
        yield from _table(["run", "status", "error"], rows)
    yield "## What the numbers mean\n"
    yield from _bullets(f"{word}: {meaning}" for word, meaning in EXPLANATIONS)


def _section(table: Table) -> Iterator[str]:
    yield f"## {escaped(table.label)}\n"
    yield f"{table.examples:,} test examples, {seeds_in_words(len(table.seeds))}. {escaped(table.leaks.in_words())}\n"
    yield from _bullets(findings(table))
    yield from _grid(results_grid(table))
    controls = controls_grid(table)
    if controls is not None:
        yield "### Controls: the same models with other neighbours\n"
        yield from _grid(controls)
    yield "### Every score\n"
    yield from _grid(metrics_grid(table))
    yield "### Every cost\n"
    yield from _grid(costs_grid(table))


def _grid(grid: Grid) -> Iterator[str]:
    return _table(grid.titles, grid.texts())


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    for line in (titles, ["---"] * len(titles), *rows):
        yield f"| {' | '.join(text if text == '---' else escaped(text) for text in line)} |"
    yield ""


def _bullets(sentences: Sequence[str] | Iterator[str]) -> Iterator[str]:
    for sentence in sentences:
        yield f"- {escaped(sentence)}"
    yield ""
