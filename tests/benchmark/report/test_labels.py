"""Names in plots are written where they can be read."""

from __future__ import annotations

from typing import Any

import pytest
from matplotlib.figure import Figure

from peft_rag.benchmark.report.labels import label_points

CORNERS = {"lower left": (0.0, 0.0), "lower right": (1.0, 0.0), "upper left": (0.0, 1.0), "upper right": (1.0, 1.0)}


def written(points: dict[str, tuple[float, float]]) -> tuple[Figure, list[Any], list[Any]]:
    figure = Figure(figsize=(5, 4), layout="constrained")
    axes = figure.subplots()
    axes.scatter(*zip(*points.values(), strict=True))
    figure.draw_without_rendering()
    label_points(axes, points.items(), points.values())
    boxes = [text.get_window_extent() for text in axes.texts if text.get_text()]
    marks = [axes.transData.transform(point) for point in points.values()]
    return figure, boxes, marks


def _gap(box: Any, mark: Any) -> float:
    """Return the pixels between a box and a point, up or down."""
    return float(max(box.y0 - mark[1], mark[1] - box.y1, 0))


def test_names_at_the_edges_stay_inside() -> None:
    figure, boxes, _ = written(CORNERS)
    frame = figure.axes[0].bbox
    for box in boxes:
        assert frame.x0 <= box.x0 <= box.x1 <= frame.x1
        assert frame.y0 <= box.y0 <= box.y1 <= frame.y1


@pytest.mark.parametrize("apart", [0.0, 0.02, 0.1])
@pytest.mark.parametrize("height", [0.5, 0.99])
def test_names_of_neighbours_hide_neither_each_other_nor_a_mark(apart: float, height: float) -> None:
    crowd = {f"one of seven, number {number}": (0.5 + number * apart / 7, height) for number in range(7)}
    figure, boxes, marks = written({**crowd, "low": (0.0, 0.0), "high": (1.0, 1.0)})
    for place, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[place + 1 :])
        assert not any(box.contains(*mark) for mark in marks)
    lines = [text for text in figure.axes[0].texts if not text.get_text()]
    assert len(lines) == sum(_gap(box, mark) > 10 for box, mark in zip(boxes, marks, strict=True))


def test_names_for_which_there_is_no_room_are_written_all_the_same() -> None:
    points = {f"a name too long for this plot, number {number}": (0.5, 0.5) for number in range(40)}
    figure, boxes, _ = written(points)
    assert len(boxes) == 40
    assert {text.get_text() for text in figure.axes[0].texts} - {""} == set(points)
