"""The page: one HTML file that needs nothing else."""

from __future__ import annotations

from collections.abc import Sequence

from peft_rag.benchmark.report.analysis import Table, overall_ranks
from peft_rag.benchmark.report.cells import DONE
from peft_rag.benchmark.report.checks import notices
from peft_rag.benchmark.report.grids import Grid, controls_grid, costs_grid, mcnemar_grid, metrics_grid, results_grid
from peft_rag.benchmark.report.page_data import page_data
from peft_rag.benchmark.report.page_tables import cells_table, grid_table, ranks_table
from peft_rag.benchmark.report.results import Results
from peft_rag.benchmark.report.shapes import colours, shapes
from peft_rag.benchmark.report.words import EXPLANATIONS, findings, seeds_in_words, setting_name
from peft_rag.pages.document import document, static
from peft_rag.pages.markup import Markup, element, embedded_json, fragment

_HOW_TO_READ = "Cheaper is further left, better is higher; the dotted line joins the rows that nothing beats."


def page(results: Results, tables: Sequence[Table]) -> str:
    """Return the page of a suite as HTML; it asks for nothing over a network."""
    return document(
        f"{results.suite}: methods and fusions side by side",
        element("a", "Skip to the results", href="#results", class_="skip"),
        _header(results, tables),
        _filters(results, tables),
        element(
            "main",
            _notices(results),
            *(_section(table) for table in tables),
            _ranks(tables),
            _cells(results),
            _explanations(),
            id="results",
        ),
        _footer(results),
        element("div", id="tip", role="status", hidden=True),
        embedded_json(page_data(results, tables), "data"),
        style=static(__package__, "page.css"),
        script=static(__package__, "page.js"),
    )


def _header(results: Results, tables: Sequence[Table]) -> Markup:
    done = sum(cell.status == DONE for cell in results.cells)
    seeds = {cell.seed for cell in results.cells}
    facts = [
        (len(tables), "data set" if len(tables) == 1 else "data sets"),
        (len({row.key for row in results.rows}), "rows"),
        (len(seeds), "seed" if len(seeds) == 1 else "seeds"),
        (f"{done} of {len(results.cells)}", "runs done"),
    ]
    return element(
        "header",
        element("p", "Benchmark", class_="kicker"),
        element("h1", results.suite),
        element(
            "p",
            "What each way of tuning a frozen transformer is worth, with and without retrieval, and what it costs.",
            class_="lede",
        ),
        element(
            "dl",
            *(element("div", element("dd", value), element("dt", name)) for value, name in facts),
            class_="facts",
        ),
    )


def _filters(results: Results, tables: Sequence[Table]) -> Markup:
    methods = colours(row.key.method for row in results.rows)
    fusions = shapes(row.key.fusion for row in results.rows)
    return element(
        "form",
        element(
            "details",
            element("summary", "Filter ", element("output", id="shown", aria_live="polite")),
            element(
                "div",
                _choices("Data set", "setting", [(setting_name(one.setting), one.label, None) for one in tables]),
                _choices("Method", "method", [(name, name, _swatch(methods[name])) for name in sorted(methods)]),
                _choices("Fusion", "fusion", [(name, name, _shape(fusions[name])) for name in sorted(fusions)]),
                element("button", "Show all", type="reset"),
                class_="choices",
            ),
            open=True,
        ),
        id="filters",
        aria_label="Filters",
    )


def _choices(title: str, name: str, choices: Sequence[tuple[str, str, Markup | None]]) -> Markup:
    boxes = (
        element(
            "label",
            element("input", type="checkbox", name=name, value=value, checked=True),
            sign,
            element("span", label),
        )
        for value, label, sign in choices
    )
    return element("fieldset", element("legend", title), *boxes)


def _swatch(number: int) -> Markup:
    return element("i", class_=f"swatch c{number}", aria_hidden="true")


def _shape(place: int) -> Markup:
    return element("i", class_=f"shape s{place}", aria_hidden="true")


def _notices(results: Results) -> Markup | None:
    found = notices(results)
    if not found:
        return None
    items = (element("li", sentence) for sentence in found)
    return element("section", element("h2", "To be known first"), element("ul", *items), class_="notices")


def _ranks(tables: Sequence[Table]) -> Markup | None:
    placed = overall_ranks(tables)
    if len(tables) < 2 or not placed:
        return None
    return element(
        "section",
        element("h2", "Ranks"),
        element("p", f"Over {len(tables)} data sets, among the {len(placed)} rows that all of them have; 1 is best."),
        ranks_table(placed, tables),
        id="ranks",
    )


def _section(table: Table) -> Markup:
    name = setting_name(table.setting)
    examples = (
        f"{table.examples:,} test examples, {seeds_in_words(len(table.seeds))}, backbone {table.setting.backbone}"
    )
    return element(
        "section",
        element("h2", table.label),
        element("p", examples, class_="about"),
        element("ul", *(element("li", sentence) for sentence in findings(table)), class_="findings"),
        element("h3", "Quality against cost"),
        element("p", _HOW_TO_READ, class_="about"),
        element("div", class_="plots", data_plots=name),
        element("h3", "Means and their intervals"),
        element("div", class_="intervals", data_intervals=name),
        element(
            "noscript",
            element("p", "Plots need JavaScript; the table below says the same in numbers."),
        ),
        element("h3", "Results"),
        element("p", table.leaks.in_words(), class_="leaks"),
        grid_table(results_grid(table), table, f"Results on {table.label}, in percent"),
        _more("Controls: the same models with other neighbours", controls_grid(table), table, shown=True),
        _more("Every score", metrics_grid(table), table),
        _more("Every cost", costs_grid(table), table),
        _more(
            "McNemar’s test against the reference, seed by seed: only this row right : only the reference right",
            mcnemar_grid(table),
            table,
        ),
        id=name,
        class_="setting",
        data_setting=name,
    )


def _more(title: str, grid: Grid | None, table: Table, *, shown: bool = False) -> Markup | None:
    if grid is None:
        return None
    return element("details", element("summary", title), grid_table(grid, table, title), open=shown)


def _cells(results: Results) -> Markup:
    return element(
        "section",
        element("h2", "Every run"),
        element("p", "Each cell is one run in its own process; its command repeats it."),
        cells_table(results),
        id="cells",
    )


def _explanations() -> Markup:
    entries = (fragment(element("dt", word), element("dd", meaning)) for word, meaning in EXPLANATIONS)
    return element("section", element("h2", "What the numbers mean"), element("dl", *entries), id="meaning")


def _footer(results: Results) -> Markup:
    cell = results.cells[0]
    machine = cell.machine
    parts = [
        f"commit {cell.commit[:10]}" if cell.commit else "",
        str(machine.get("processor", "")),
        f"{machine['cores']} cores" if "cores" in machine else "",
        str(machine.get("system", "")),
        ", ".join(f"{name} {version}" for name, version in cell.versions.items()),
    ]
    return element("footer", element("p", " · ".join(part for part in parts if part)))
