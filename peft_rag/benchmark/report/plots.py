"""Plots for papers, as PNG."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from peft_rag.benchmark.report.analysis import Result, Table
from peft_rag.benchmark.report.costs import BY_NAME, PLOTTED, pareto_front
from peft_rag.benchmark.report.labels import Point, label_points
from peft_rag.benchmark.report.shapes import COLOURS, MARKERS, colours, shapes
from peft_rag.benchmark.report.words import amount, setting_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_DOTS_PER_INCH = 200
_WIDE = 20.0
_LONGEST_NAME = 40
_IN_MINUTES = 120.0
_MOST_TICKS = 5
_TIME_STEPS = (60, 120, 300, 600, 1200, 1800, 3600, 7200, 14400, 28800)
"""Seconds."""


@dataclass(frozen=True)
class _Look:
    """The colour of each method and the mark of each fusion."""

    colours: Mapping[str, str]
    markers: Mapping[str, str]

    @classmethod
    def of(cls, results: Iterable[Result]) -> _Look:
        keys = [one.row.key for one in results]
        return cls(
            {method: COLOURS[number] for method, number in colours(key.method for key in keys).items()},
            {fusion: MARKERS[number] for fusion, number in shapes(key.fusion for key in keys).items()},
        )

    def colour(self, result: Result) -> str:
        return self.colours[result.row.key.method]

    def marker(self, result: Result) -> str:
        return self.markers[result.row.key.fusion]


def plots(tables: Sequence[Table]) -> Iterator[tuple[str, bytes]]:
    """Yield file names and PNG images: quality against costs, and intervals, of each setting with a result.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    look = _Look.of(one for table in tables for one in table.results)
    for table in tables:
        results = [one for one in table.results if one.quality is not None]
        if results:
            name = setting_name(table.setting)
            yield f"pareto-{name}.png", _png(_pareto_figure(table, results, look))
            yield f"intervals-{name}.png", _png(_interval_figure(table, results, look))


def _pareto_figure(table: Table, results: Sequence[Result], look: _Look) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 8), layout="constrained")
    plotted = list(zip(figure.subplots(2, 2, sharey=True).flat, PLOTTED, strict=True))
    marks = [
        _pareto(axes, table.metric, name, [one for one in results if name in one.costs], look) for axes, name in plotted
    ]
    figure.suptitle(f"{_plain(table.label)}: {_plain(table.metric)} in percent")
    _legend(figure, results, look)
    figure.draw_without_rendering()
    for (axes, _), (front, points) in zip(plotted, marks, strict=True):
        label_points(axes, front, points)
    return figure


def _pareto(
    axes: Axes, metric: str, name: str, results: Sequence[Result], look: _Look
) -> tuple[list[tuple[str, Point]], list[Point]]:
    """Plot quality against a cost; return what is written at the points of the front, and all points."""
    at = {one.row.label: (one.costs[name], 100 * one.metrics[metric].mean) for one in results}
    front = pareto_front({one.row.label: at[one.row.label] for one in results if one.row.complete})
    positive = [cost for cost, _ in at.values() if cost > 0]
    if positive and max(positive) > _WIDE * min(positive):
        _log_scale(axes, min(positive), max(positive))
    for one in results:
        label = one.row.label
        filled = look.colour(one) if one.row.complete else "none"
        axes.scatter(
            *at[label],
            s=48,
            marker=look.marker(one),
            facecolors=filled,
            edgecolors=look.colour(one),
            alpha=1.0 if label in front else 0.45,
            zorder=3,
        )
    if front:
        costs, values = zip(*(at[label] for label in front), strict=True)
        axes.step(costs, values, where="post", color="#333333", linestyle=":", linewidth=1)
    cost = BY_NAME[name]
    if axes.get_xscale() == "linear":
        axes.locator_params(axis="x", nbins=_MOST_TICKS)
        if cost.unit == "seconds":
            _ticks_at_whole_minutes(axes, max(positive, default=0.0))
    axes.xaxis.set_major_formatter(lambda value, place: amount(value, cost.unit))
    axes.set_xlabel(cost.title)
    axes.grid(alpha=0.25)
    return [(_plain(label), at[label]) for label in front], list(at.values())


def _log_scale(axes: Axes, least: float, most: float) -> None:
    """Put costs of several orders on an axis on which 0 has a place too."""
    from matplotlib.ticker import FixedLocator

    axes.set_xscale("symlog", linthresh=least / 2)
    powers = range(math.ceil(math.log10(least / 2)), math.floor(math.log10(most)) + 1)
    axes.xaxis.set_major_locator(FixedLocator([0, *(10.0**power for power in powers)]))


def _ticks_at_whole_minutes(axes: Axes, longest: float) -> None:
    """Let ticks stand where amounts are round, for times that are written in minutes."""
    from matplotlib.ticker import MultipleLocator

    if longest >= _IN_MINUTES:
        step = next((step for step in _TIME_STEPS if longest <= _MOST_TICKS * step), _TIME_STEPS[-1])
        axes.xaxis.set_major_locator(MultipleLocator(step))


def _interval_figure(table: Table, results: Sequence[Result], look: _Look) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 0.8 + 0.28 * len(results)), layout="constrained")
    axes = figure.subplots()
    for place, one in enumerate(results):
        colour, value = look.colour(one), 100 * one.metrics[table.metric].mean
        if one.quality is not None and table.metric_is_tallied:
            axes.plot(
                [100 * one.quality.low, 100 * one.quality.high], [place, place], color=colour, linewidth=2, alpha=0.6
            )
        filled = colour if one.row.complete else "white"
        axes.plot(value, place, look.marker(one), color=colour, markerfacecolor=filled)
        if one.row.key == table.reference:
            axes.axvline(value, color="#888888", linestyle="--", linewidth=1, zorder=0)
    axes.set_yticks(range(len(results)), [_plain(one.row.label) for one in results], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel(f"{_plain(table.metric)} in percent on {_plain(table.label)}")
    axes.grid(axis="x", alpha=0.25)
    return figure


def _legend(figure: Figure, results: Sequence[Result], look: _Look) -> None:
    from matplotlib.lines import Line2D

    methods = dict.fromkeys(one.row.key.method for one in results)
    fusions = {one.row.key.fusion: look.marker(one) for one in results}
    handles: list[Any] = [
        Line2D([], [], linestyle="", marker="o", color=look.colours[method], label=_plain(method)) for method in methods
    ]
    handles += [
        Line2D([], [], linestyle="", marker=marker, color="#555555", label=_plain(fusion))
        for fusion, marker in fusions.items()
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(6, len(handles)), fontsize=8, frameon=False)


def _plain(text: str) -> str:
    """Keep a name from being read as a formula, and from taking the whole picture."""
    shown = text if len(text) <= _LONGEST_NAME else f"{text[: _LONGEST_NAME - 1]}…"
    return shown.replace("$", r"\$")


def _png(figure: Figure) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=_DOTS_PER_INCH, metadata={"Software": None})
    return image.getvalue()
