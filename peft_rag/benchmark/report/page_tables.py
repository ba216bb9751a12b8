"""The page's tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from peft_rag.benchmark.report.analysis import Result, Table
from peft_rag.benchmark.report.cells import DONE, Cell
from peft_rag.benchmark.report.grids import Column, Grid
from peft_rag.benchmark.report.results import Results, RowKey
from peft_rag.benchmark.report.words import NOTHING, amount, percent, setting_name
from peft_rag.evaluation.comparison import BETTER, SAME, WORSE
from peft_rag.evaluation.ranks import Placing
from peft_rag.pages.markup import Markup, element, fragment

_VERDICTS = {BETTER: "better", WORSE: "worse", SAME: "same"}


def grid_table(grid: Grid, table: Table, caption: str) -> Markup:
    """Return a table whose rows the filters know and whose columns can be sorted."""
    heads = (_sortable(title) for title in grid.titles)
    rows = (
        element(
            "tr",
            *(_cell(column, result, place == 0) for place, column in enumerate(grid.columns)),
            class_=_row_class(result, table),
            **_filtered(setting_name(table.setting), result.row.key),
        )
        for result in grid.results
    )
    return _framed(caption, heads, rows)


def ranks_table(placed: Mapping[RowKey, Placing], tables: Sequence[Table]) -> Markup:
    """Return average ranks, and each data set's own value and rank."""
    values = [{one.row.key: one for one in table.results} for table in tables]
    heads = [_sortable("row"), _sortable("average rank"), *(_sortable(table.label) for table in tables)]
    rows = (
        element(
            "tr",
            element("th", key.label, scope="row"),
            element("td", f"{one.average:.2f}", data_order=one.average),
            *(
                _placed(own[key], table.metric, rank)
                for own, table, rank in zip(values, tables, one.ranks, strict=True)
            ),
            **_filtered(None, key),
        )
        for key, one in placed.items()
    )
    return _framed("Average ranks, and each data set’s mean in percent with its rank there", heads, rows)


def cells_table(results: Results) -> Markup:
    """Return every run with status, time, and its command."""
    heads = map(_sortable, ("run", "status", "seed", "seconds", "started", "command"))
    rows = (
        element(
            "tr",
            element("th", cell.name, scope="row"),
            element("td", _status(cell)),
            element("td", cell.seed, data_order=cell.seed),
            element("td", amount(cell.seconds, "seconds"), data_order=cell.seconds),
            element("td", element("time", cell.started.replace("T", " ").removesuffix("Z"), datetime=cell.started)),
            element("td", _command(cell)),
            class_=None if cell.done else "incomplete",
            **_filtered(setting_name(cell.setting), RowKey(cell.method, cell.fusion)),
        )
        for cell in sorted(results.cells, key=lambda cell: (cell.status == DONE, cell.name))
    )
    return _framed("Every run, those that did not end well first; times are in UTC", heads, rows)


def _framed(caption: str, heads: object, rows: object) -> Markup:
    """Return a table in a frame that scrolls sideways, with the keyboard too."""
    inner = element(
        "table",
        element("caption", caption),
        element("thead", element("tr", *heads)),  # type: ignore[misc]
        element("tbody", *rows),  # type: ignore[misc]
    )
    return element("div", inner, class_="frame", role="region", aria_label=caption, tabindex=0)


def _sortable(title: str) -> Markup:
    return element("th", element("button", title, type="button"), scope="col")


def _filtered(setting: str | None, key: RowKey) -> dict[str, str | None]:
    return {"data_setting": setting, "data_method": key.method, "data_fusion": key.fusion}


def _cell(column: Column, result: Result, names_row: bool) -> Markup:
    text = column.text(result)
    if names_row:
        return element("th", text, scope="row")
    order = column.order(result) if column.order else None
    return element("td", _marked(text), data_order=order, class_=None if column.order else "text")


def _marked(text: str) -> Markup:
    """Let a verdict be seen at a glance; its word stays."""
    for word, name in _VERDICTS.items():
        if text.startswith(word):
            return fragment(element("b", word, class_=f"verdict {name}"), text.removeprefix(word))
    return fragment(text)


def _row_class(result: Result, table: Table) -> str | None:
    if not result.row.complete:
        return "incomplete"
    if result.row.key == table.reference:
        return "reference"
    return "best" if table.best is not None and result.row.key in {one.row.key for one in table.alike} else None


def _placed(result: Result, metric: str, rank: float) -> Markup:
    if metric not in result.metrics or not result.row.complete:
        return element("td", f"{result.row.shortfall or NOTHING} ({rank:g})")
    mean = result.metrics[metric].mean
    return element("td", f"{percent(mean)} ({rank:g})", data_order=mean)


def _status(cell: Cell) -> Markup:
    badge = element("b", cell.status, class_=f"badge {cell.status}")
    return badge if cell.done else fragment(badge, " ", element("span", cell.error, class_="error"))


def _command(cell: Cell) -> Markup | str:
    if not cell.command:
        return NOTHING
    return element(
        "div",
        element("button", "Copy", type="button", class_="copy", aria_label=f"Copy the command of {cell.name}"),
        element("code", cell.command, tabindex=0),
        class_="command",
    )
