"""Ranks of rows within a data set, and their averages over data sets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

Key = TypeVar("Key")


def ranks(values: Mapping[Key, float | None]) -> dict[Key, float]:
    """Rank from the highest value, 1, to the lowest; equal values share the mean of their ranks.

    Values are equal where they differ by less than a billionth: means of the same numbers, summed in another order, do.
    None stands for a failure and comes last: failing is not better than any score. Where all failed, none has a rank.

    >>> ranks({"a": 0.9, "b": 0.7, "c": 0.9, "d": None})
    {'a': 1.5, 'b': 3.0, 'c': 1.5, 'd': 4.0}
    >>> ranks({"a": (0.84 + 0.86 + 0.87) / 3, "b": (0.87 + 0.86 + 0.84) / 3 + 1e-16})
    {'a': 1.5, 'b': 1.5}
    """
    from scipy.stats import rankdata

    if all(value is None for value in values.values()):
        return {}
    placed = rankdata([float("inf") if value is None else -round(value, 9) for value in values.values()])
    return {key: float(rank) for key, rank in zip(values, placed, strict=True)}


@dataclass(frozen=True)
class Placing:
    """How a row does over several data sets.

    Attributes:
        ranks: its rank in each, among the rows that all of them have.
    """

    ranks: tuple[float, ...]

    @property
    def average(self) -> float:
        """The mean rank."""
        return sum(self.ranks) / len(self.ranks)


def placings(tables: Sequence[Mapping[Key, float | None]]) -> dict[Key, Placing]:
    """Return how each row that all data sets have does in them, the best average rank first.

    Where all of them failed they share the mean of the ranks, which favours none.

    >>> {key: one.ranks for key, one in placings([{"a": 0.7, "b": 0.9}, {"a": None, "b": None}]).items()}
    {'b': (1.0, 1.5), 'a': (2.0, 1.5)}
    """
    shared = [key for key in tables[0] if all(key in table for table in tables)] if tables else []
    alike = dict.fromkeys(shared, (len(shared) + 1) / 2)
    ranked = [ranks({key: table[key] for key in shared}) or alike for table in tables] if shared else []
    placed = {key: Placing(tuple(table[key] for table in ranked)) for key in shared}
    return dict(sorted(placed.items(), key=lambda pair: pair[1].average))
