"""The tables as rows of text, made once for terminal, Markdown and page."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from peft_rag.benchmark.report.analysis import Result, Table
from peft_rag.benchmark.report.cells import RETRIEVED
from peft_rag.benchmark.report.costs import BY_NAME, COSTS, PLOTTED
from peft_rag.benchmark.report.judging import CONTROLS
from peft_rag.benchmark.report.words import NOTHING, cost, percent, points, with_deviation
from peft_rag.evaluation.spread import Spread


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Attributes:
        title: at its head.
        text: of a row's cell.
        order: what rows are sorted by; the text itself where it is None.
    """

    title: str
    text: Callable[[Result], str]
    order: Callable[[Result], float | None] | None = None


@dataclass(frozen=True)
class Grid:
    """A table to be drawn.

    Attributes:
        columns: from left to right; the first names the row.
        results: the rows.
    """

    columns: Sequence[Column]
    results: Sequence[Result]

    @property
    def titles(self) -> list[str]:
        return [column.title for column in self.columns]

    def texts(self) -> list[list[str]]:
        """Return the text of each cell, row by row."""
        return [[column.text(result) for column in self.columns] for result in self.results]


def results_grid(table: Table) -> Grid:
    """Return the main table: quality, comparisons, and the costs that plots show."""
    reference = "the reference" if table.reference is None else table.reference.label
    return Grid(
        [
            Column("row", lambda one: one.row.label),
            Column("rank", _rank, lambda one: one.rank),
            *_quality(table),
            Column("without leaks", lambda one: percent(one.clean), lambda one: one.clean),
            Column(f"against {reference}", lambda one: _against_reference(one, table), _reference_order),
            Column("against no retrieval", lambda one: points(one.against_none), _none_order),
            *(_cost_column(name) for name in PLOTTED),
            *_machine(table),
            Column("runs", _runs),
        ],
        table.results,
    )


def metrics_grid(table: Table) -> Grid:
    """Return every score that the task has, mean and deviation over seeds."""
    names = list(dict.fromkeys(name for result in table.results for name in result.metrics))
    return Grid(
        [Column("row", lambda one: one.row.label), *(_metric_column(name, table) for name in names)],
        _with_results(table),
    )


def costs_grid(table: Table) -> Grid:
    """Return every cost that was measured."""
    names = [kind.name for kind in COSTS if any(kind.name in one.costs for one in table.results)]
    columns = [Column("row", lambda one: one.row.label), *map(_cost_column, names), *_machine(table)]
    return Grid(columns, _with_results(table))


def controls_grid(table: Table) -> Grid | None:
    """Return the metric of each row that retrieves with other neighbours; None where no row retrieves."""
    results = [result for result in table.results if result.controls]
    if not results:
        return None
    arms = [arm for arm in CONTROLS if any(arm in result.controls for result in results)]
    compared = [arm for arm in arms if arm != RETRIEVED]
    columns = [*map(_control_column, arms), *map(_against_control_column, compared)]
    return Grid([Column("row", lambda one: one.row.label), *columns], results)


def mcnemar_grid(table: Table) -> Grid | None:
    """Return McNemar's mid-p against the reference row, seed by seed; None where there is none."""
    results = [result for result in table.results if result.mcnemar]
    if not results:
        return None
    return Grid([Column("row", lambda one: one.row.label), *map(_mcnemar_column, table.seeds)], results)


def _with_results(table: Table) -> list[Result]:
    return [result for result in table.results if result.row.done]


def _quality(table: Table) -> list[Column]:
    mean = _metric_column(table.metric, table)
    if table.metric_is_tallied:
        return [mean, Column("95% interval", _interval, lambda one: one.quality.low if one.quality else None)]
    right = Column(
        "answers right", lambda one: str(one.quality or NOTHING), lambda one: one.quality.value if one.quality else None
    )
    return [mean, right]


def _metric_column(name: str, table: Table) -> Column:
    return _spread_column(name, lambda one: one.metrics, share=name not in table.plain_scores)


def _control_column(arm: str) -> Column:
    return _spread_column(arm, lambda one: one.controls)


def _spread_column(name: str, of: Callable[[Result], Mapping[str, Spread]], *, share: bool = True) -> Column:
    """Return the column of one of a row's spreads over seeds, empty where the row has none of that name."""
    return Column(
        name,
        lambda one: with_deviation(of(one)[name], share=share) if name in of(one) else NOTHING,
        lambda one: of(one)[name].mean if name in of(one) else None,
    )


def _cost_column(name: str) -> Column:
    return Column(BY_NAME[name].title, lambda one: cost(one, name), lambda one: one.costs.get(name))


def _machine(table: Table) -> list[Column]:
    """Return the column that says where rows were measured, where it was not one machine for all."""
    several = any(one.machines for one in table.results)
    return [Column("machine", lambda one: ", ".join(one.machines) or NOTHING)] if several else []


def _against_control_column(arm: str) -> Column:
    def order(one: Result) -> float | None:
        return one.against_controls[arm].difference.value if arm in one.against_controls else None

    return Column(f"retrieved against {arm}", lambda one: points(one.against_controls.get(arm)), order)


def _mcnemar_column(seed: int) -> Column:
    def text(one: Result) -> str:
        test = one.mcnemar.get(seed)
        return NOTHING if test is None else f"{test.only_first} : {test.only_second}, mid-p {test.mid_p:.3f}"

    return Column(f"seed {seed}", text, lambda one: one.mcnemar[seed].mid_p if seed in one.mcnemar else None)


def _interval(one: Result) -> str:
    return NOTHING if one.quality is None else f"[{percent(one.quality.low)}, {percent(one.quality.high)}]"


def _runs(one: Result) -> str:
    runs = one.row.shortfall or f"all {len(one.row.seeds)}"
    return f"{runs}, another library’s" if one.row.external else runs


def _rank(one: Result) -> str:
    return NOTHING if one.rank is None else f"{one.rank:g}"


def _against_reference(one: Result, table: Table) -> str:
    return "the reference" if one.row.key == table.reference else points(one.against_reference)


def _reference_order(one: Result) -> float | None:
    return one.against_reference.difference.value if one.against_reference else None


def _none_order(one: Result) -> float | None:
    return one.against_none.difference.value if one.against_none else None
