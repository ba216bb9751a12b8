"""Ranks of rows within a data set, and their averages over data sets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

Key = TypeVar("Key")


def ranks(values: Mapping[Key, float | None]) -> dict[Key, float]:
    """Rank from the highest value, 1, to the lowest; equal values share the mean of their ranks.

    None stands for a failure and comes last: failing is not better than any score.

    >>> ranks({"a": 0.9, "b": 0.7, "c": 0.9, "d": None})
    {'a': 1.5, 'b': 3.0, 'c': 1.5, 'd': 4.0}
    """
    from scipy.stats import rankdata

    placed = rankdata([float("inf") if value is None else -value for value in values.values()])
    return {key: float(rank) for key, rank in zip(values, placed, strict=True)}


def average_ranks(tables: Sequence[Mapping[Key, float | None]]) -> dict[Key, float]:
    """Return each row's mean rank over data sets, among the rows that all of them have, best first."""
    shared = [key for key in tables[0] if all(key in table for table in tables)] if tables else []
    if not shared:
        return {}
    ranked = [ranks({key: table[key] for key in shared}) for table in tables]
    means = {key: sum(table[key] for table in ranked) / len(ranked) for key in shared}
    return dict(sorted(means.items(), key=lambda pair: pair[1]))
