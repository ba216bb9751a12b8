"""Holm's correction for testing many hypotheses at once."""

from __future__ import annotations

from collections.abc import Sequence


def holm(p_values: Sequence[float]) -> list[float]:
    """Return adjusted p-values: rejecting those below α errs anywhere in the family with a probability of at most α.

    With p_(1) ≤ … ≤ p_(m), adjusted_(j) = max over i ≤ j of min(1, (m - i + 1)·p_(i)).

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]

    Source: Holm 1979, Scandinavian Journal of Statistics 6(2), 65-70.
    """
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for tried, place in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - tried) * p_values[place]))
        adjusted[place] = largest
    return adjusted
