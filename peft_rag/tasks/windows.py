"""A text that is longer than the window of tokens, read in several that overlap."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from peft_rag.tasks.base import Reach, Span


@dataclass(frozen=True)
class Window:
    """Some words of a text that are read together.

    Attributes:
        first: the first of them.
        last: the one after the last.
        owned: those that are judged here; of words that two windows share each judges the half it sees more around.
    """

    first: int
    last: int
    owned: range


def windows(text: str, begin: int, words: Sequence[Span], overlap: int, reach: Reach) -> list[Window]:
    """Cut the words of a text into windows as long as fit beneath what stands at its beginning.

    Args:
        text: what stands in every window, then what is cut.
        begin: the first character of what is cut.
        words: the characters of each word, in order.
        overlap: words that two windows share, half of a window at most.
        reach: says how far a text fits.

    Returns:
        windows that own every word once, in order; none where there is no room beneath what stands in every window.
    """
    parts: list[tuple[int, int]] = []
    first = last = 0
    while last < len(words):
        back = words[first][0] - begin
        limit = reach(text[:begin] + text[words[first][0] : words[-1][1]])
        covered = len(words) if limit is None else first + sum(end - back <= limit for _, end in words[first:])
        if limit is not None and limit <= begin:
            return []
        if covered <= last and first < last:
            first = last
            continue
        # A word longer than a window is judged by as much of it as fits.
        last = max(covered, last + 1)
        parts.append((first, last))
        first = max(first + 1, last - min(overlap, (last - first) // 2))
    borders = [0, *((one[1] + other[0] + 1) // 2 for one, other in itertools.pairwise(parts)), len(words)]
    return [
        Window(first, last, range(borders[number], borders[number + 1])) for number, (first, last) in enumerate(parts)
    ]
