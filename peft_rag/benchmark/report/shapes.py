"""Which mark a fusion has in plots, and which colour a method: one of its own, as long as there are enough."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import cycle

from peft_rag.benchmark.report.results import ALONE, NONE

_ALWAYS = (NONE, "knn", "concat")
_COMMON = ("head", "lora", "adapter", "bitfit", "ia3", "prompt-tuning", "full", ALONE)
MARKERS = ("o", "^", "s", "D", "v", "P", "p")
"""The marks, as matplotlib calls them; the page draws the same in ``page.js`` and ``page.css``."""

COLOURS = (
    *("#6b7280", "#c8372d", "#d97706", "#0e8a66", "#2563eb"),
    *("#8b3fd1", "#0891b2", "#c026a0", "#6a8f14", "#8a5a3b"),
)
"""The colours; the page has the same in ``page.css``."""


def shapes(fusions: Iterable[str]) -> dict[str, int]:
    """Return the number of each fusion's mark in `MARKERS`: what is most common has the same in every plot.

    >>> shapes(["projector", "knn", "fid"])
    {'knn': 1, 'fid': 3, 'projector': 4}
    """
    wanted = set(fusions)
    others = sorted(wanted - set(_ALWAYS))
    numbers = {name: place for place, name in enumerate(_ALWAYS) if name in wanted}
    return numbers | {name: min(place, len(MARKERS) - 1) for place, name in enumerate(others, len(_ALWAYS))}


def colours(methods: Iterable[str]) -> dict[str, int]:
    """Return the number of each method's colour in `COLOURS`: what is most common has the same in every plot.

    >>> colours(["vera", "lora", "head"])
    {'head': 0, 'lora': 1, 'vera': 2}
    """
    wanted = set(methods)
    numbers = {name: place for place, name in enumerate(_COMMON) if name in wanted}
    free = [place for place in range(len(COLOURS)) if place not in numbers.values()]
    return numbers | dict(zip(sorted(wanted - set(_COMMON)), cycle(free)))
