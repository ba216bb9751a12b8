"""Names beside points of a plot, inside its frame and clear of each other."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.text import Annotation
    from matplotlib.transforms import Bbox

Point = tuple[float, float]

_BESIDE, _BELOW, _ABOVE, _LINE = 6, -10, 4, 11
_LINES_AWAY = 8
_MARK = 4.0
"""Half the width of a mark, in points."""

_INCH = 72.0


@dataclass(frozen=True)
class _Place:
    """Where a name may stand.

    Attributes:
        right, above: points from its own point to its lower corner.
        edge: the side of that corner.
        far: whether a line must lead to it.
    """

    right: int
    above: int
    edge: Literal["left", "right"]
    far: bool = False

    def take(self, text: Annotation) -> None:
        text.set_position((self.right, self.above))
        text.set_horizontalalignment(self.edge)


_PLACES = [
    place
    for line in range(_LINES_AWAY)
    for above in (_BELOW - line * _LINE, _ABOVE + line * _LINE)
    for place in (_Place(_BESIDE, above, "left", line > 0), _Place(-_BESIDE, above, "right", line > 0))
]
"""Nearest first; the first that is free is taken."""


def label_points(axes: Axes, names: Iterable[tuple[str, Point]], marks: Iterable[Point] = ()) -> None:
    """Write a name beside each point, in the nearest place inside the frame that hides no other name and no mark.

    A line leads to a name that is not beside its point. Where every place hides something the nearest is taken.

    Args:
        axes: of a figure whose layout is final, drawn once.
        names: what is written, and where its point lies in data coordinates.
        marks: points that are to be seen.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.transforms import Bbox

    figure = axes.get_figure(root=True)
    assert figure is not None
    renderer = FigureCanvasAgg(figure).get_renderer()
    half = _MARK * renderer.dpi / _INCH
    seen = [Bbox.from_extents(x - half, y - half, x + half, y + half) for x, y in map(axes.transData.transform, marks)]
    for name, point in names:
        text = axes.annotate(name, point, xytext=(0, 0), textcoords="offset points", fontsize=8)
        text.set_in_layout(False)
        boxes = []
        for place in _PLACES:
            place.take(text)
            boxes.append(text.get_window_extent(renderer))
        number = _nearest_free(axes.bbox, boxes, seen)
        _PLACES[number].take(text)
        seen.append(boxes[number])
        if _PLACES[number].far:
            _lead(axes, point, _PLACES[number])


def _nearest_free(frame: Bbox, boxes: list[Bbox], seen: list[Bbox]) -> int:
    """Return the number of the first box inside the frame that overlaps nothing, or else the first inside."""
    inside = [number for number, box in enumerate(boxes) if _holds(frame, box)] or [0]
    free = [number for number in inside if not any(boxes[number].overlaps(other) for other in seen)]
    return (free or inside)[0]


def _holds(frame: Bbox, box: Bbox) -> bool:
    return bool(frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1)


def _lead(axes: Axes, point: Point, place: _Place) -> None:
    line = {"arrowstyle": "-", "color": "#999999", "linewidth": 0.6, "shrinkA": 0, "shrinkB": 3}
    end = (place.right, place.above + _ABOVE)
    axes.annotate("", point, xytext=end, textcoords="offset points", arrowprops=line, zorder=2).set_in_layout(False)
