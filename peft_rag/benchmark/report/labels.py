"""Names beside points of a plot, inside its frame and clear of each other."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.transforms import Bbox

Point = tuple[float, float]

_PLACES: tuple[tuple[int, int, Literal["left", "right"]], ...] = (
    (6, -10, "left"),
    (6, 4, "left"),
    (-6, 4, "right"),
    (-6, -10, "right"),
)
"""Where a name may stand: points right of its own and above it, and its edge there; the first that is free is taken."""

_MARK = 4.0
"""Half the width of a mark, in points."""

_INCH = 72.0


def label_points(axes: Axes, names: Mapping[str, Point], marks: Iterable[Point] = ()) -> None:
    """Write a name beside each point, in the first place inside the frame that hides no other name and no mark.

    Where every place hides something the first inside the frame is taken.

    Args:
        axes: of a figure whose layout is final, drawn once.
        names: what is written, by where its point lies in data coordinates.
        marks: points that are to be seen.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.transforms import Bbox as Box

    figure = axes.get_figure(root=True)
    assert figure is not None
    renderer = FigureCanvasAgg(figure).get_renderer()
    half = _MARK * renderer.dpi / _INCH
    seen = [Box.from_extents(x - half, y - half, x + half, y + half) for x, y in map(axes.transData.transform, marks)]
    for name, point in names.items():
        text = axes.annotate(name, point, xytext=_PLACES[0][:2], textcoords="offset points", fontsize=8)
        text.set_in_layout(False)
        boxes = []
        for right, above, edge in _PLACES:
            text.set_position((right, above))
            text.set_horizontalalignment(edge)
            boxes.append(text.get_window_extent(renderer))
        inside = [place for place, box in enumerate(boxes) if _holds(axes.bbox, box)] or [0]
        free = [place for place in inside if not any(boxes[place].overlaps(other) for other in seen)]
        chosen = (free or inside)[0]
        text.set_position(_PLACES[chosen][:2])
        text.set_horizontalalignment(_PLACES[chosen][2])
        seen.append(boxes[chosen])


def _holds(frame: Bbox, box: Bbox) -> bool:
    return bool(frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1)
