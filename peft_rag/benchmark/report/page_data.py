"""What the page's plots are drawn from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from peft_rag.benchmark.report.analysis import Result, Table
from peft_rag.benchmark.report.costs import BY_NAME, PLOTTED
from peft_rag.benchmark.report.results import Results
from peft_rag.benchmark.report.shapes import colours, shapes
from peft_rag.benchmark.report.words import cost, percent, setting_name, with_deviation


def page_data(results: Results, tables: Sequence[Table]) -> dict[str, Any]:
    """Return rows with quality and costs by setting, methods' colours and fusions' marks."""
    return {
        "colours": colours(row.key.method for row in results.rows),
        "shapes": shapes(row.key.fusion for row in results.rows),
        "costs": [{"name": name, "title": BY_NAME[name].title, "unit": BY_NAME[name].unit} for name in PLOTTED],
        "settings": [_setting(table) for table in tables],
    }


def _setting(table: Table) -> dict[str, Any]:
    return {
        "id": setting_name(table.setting),
        "label": table.label,
        "metric": table.metric,
        "interval": table.metric_is_tallied,
        "reference": None if table.reference is None else table.reference.label,
        "rows": [_row(result, table) for result in table.results if result.quality is not None],
    }


def _row(result: Result, table: Table) -> dict[str, Any]:
    row, quality = result.row, result.quality
    assert quality is not None
    of_metric = table.metric_is_tallied
    return {
        "label": row.label,
        "method": row.key.method,
        "fusion": row.key.fusion,
        "quality": result.metrics[table.metric].mean,
        "low": quality.low if of_metric else None,
        "high": quality.high if of_metric else None,
        "shown": f"{with_deviation(result.metrics[table.metric])}"
        + (f" [{percent(quality.low)}, {percent(quality.high)}]" if of_metric else ""),
        "shortfall": row.shortfall,
        "costs": {name: result.costs[name] for name in PLOTTED if name in result.costs},
        "amounts": {name: cost(result, name) for name in PLOTTED if name in result.costs},
    }
