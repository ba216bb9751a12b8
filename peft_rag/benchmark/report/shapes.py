"""Which mark a fusion has in plots: one of its own, as long as there are enough."""

from __future__ import annotations

from collections.abc import Iterable

from peft_rag.benchmark.report.results import NONE

_ALWAYS = (NONE, "knn", "concat")
MARKERS = ("o", "^", "s", "D", "v", "P", "p")
"""The marks, as matplotlib calls them; the page draws the same in ``page.js`` and ``page.css``."""


def shapes(fusions: Iterable[str]) -> dict[str, int]:
    """Return the number of each fusion's mark in `MARKERS`: what is most common has the same in every plot.

    >>> shapes(["projector", "knn", "fid"])
    {'knn': 1, 'fid': 3, 'projector': 4}
    """
    wanted = set(fusions)
    others = sorted(wanted - set(_ALWAYS))
    numbers = {name: place for place, name in enumerate(_ALWAYS) if name in wanted}
    return numbers | {name: min(place, len(MARKERS) - 1) for place, name in enumerate(others, len(_ALWAYS))}
