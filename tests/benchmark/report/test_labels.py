"""Names in plots are written where they can be read."""

from __future__ import annotations

import pytest
from matplotlib.figure import Figure

from peft_rag.benchmark.report.labels import label_points

CORNERS = {"lower left": (0.0, 0.0), "lower right": (1.0, 0.0), "upper left": (0.0, 1.0), "upper right": (1.0, 1.0)}


def written(points: dict[str, tuple[float, float]]) -> tuple[Figure, list[object], list[object]]:
    figure = Figure(figsize=(5, 4), layout="constrained")
    axes = figure.subplots()
    axes.scatter(*zip(*points.values(), strict=True))
    figure.draw_without_rendering()
    label_points(axes, points, points.values())
    boxes = [text.get_window_extent() for text in axes.texts]
    marks = [axes.transData.transform(point) for point in points.values()]
    return figure, boxes, marks


def test_names_at_the_edges_stay_inside() -> None:
    figure, boxes, _ = written(CORNERS)
    frame = figure.axes[0].bbox
    for box in boxes:
        assert frame.x0 <= box.x0 <= box.x1 <= frame.x1
        assert frame.y0 <= box.y0 <= box.y1 <= frame.y1


@pytest.mark.parametrize("apart", [0.0, 0.02, 0.1])
def test_names_of_neighbours_hide_neither_each_other_nor_a_mark(apart: float) -> None:
    points = {"one name": (0.5, 0.5), "another": (0.5 + apart, 0.5), "low": (0.0, 0.0), "high": (1.0, 1.0)}
    _, boxes, marks = written(points)
    for place, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[place + 1 :])
        assert not any(box.contains(*mark) for mark in marks)


def test_names_for_which_there_is_no_room_are_written_all_the_same() -> None:
    points = {f"a name too long for this plot, number {number}": (0.5, 0.5) for number in range(9)}
    figure, boxes, _ = written(points)
    assert len(boxes) == 9
    assert {text.get_text() for text in figure.axes[0].texts} == set(points)
