"""Paired comparison of trained models over the seeds and examples they share, and what it says in words.

Dims: S seeds, N examples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from peft_rag.evaluation.bootstrap import Score
from peft_rag.evaluation.holm import holm
from peft_rag.evaluation.statistics import FloatArray
from peft_rag.evaluation.tallies import Drawn
from peft_rag.evaluation.two_level import interval, p_value

LEVEL = 0.05
BETTER, WORSE, SAME = "better", "worse", "no difference"


@dataclass(frozen=True)
class Comparison:
    """One row of a table against another.

    Attributes:
        difference: metric of the first minus that of the second, with its 95% interval; both over what they share.
        p: of "no difference", from the two-level bootstrap.
        adjusted: the same after Holm's correction over the family; equal to ``p`` where it stands alone.
        seeds: number of seeds compared.
    """

    difference: Score
    p: float
    adjusted: float
    seeds: int

    @property
    def verdict(self) -> str:
        """``better``, ``worse`` or ``no difference``, at an adjusted p of 5%."""
        if self.adjusted >= LEVEL:
            return SAME
        return BETTER if self.difference.value > 0 else WORSE

    def __str__(self) -> str:
        """Say it in percentage points.

        >>> str(Comparison(Score(0.015, 0.007, 0.023), 0.001, 0.004, 3))
        'better by 1.5 [0.7, 2.3], p = 0.004'
        """
        difference = self.difference
        low, high = 100 * difference.low, 100 * difference.high
        if self.verdict == SAME:
            shown = f"({100 * difference.value:+.1f} [{low:+.1f}, {high:+.1f}])"
            return f"{SAME} {shown}, {p_in_words(self.adjusted)}"
        if self.verdict == WORSE:
            low, high = -high, -low
        return (
            f"{self.verdict} by {abs(100 * difference.value):.1f} [{low:.1f}, {high:.1f}], {p_in_words(self.adjusted)}"
        )


def compare(differences: Drawn, draws: FloatArray) -> Comparison:
    """Judge a paired difference by its bootstrap draws.

    Args:
        differences: of `peft_rag.evaluation.tallies.difference`.
        draws: its row of `peft_rag.evaluation.two_level.bootstrap_rows`, ``(R,)``.
    """
    p = p_value(draws)
    seeds, examples = differences.scores.shape
    return Comparison(interval(float(differences.scores.mean()), draws, examples, least=-1.0), p, p, seeds)


def as_family(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """Return comparisons that are made together, each p adjusted by Holm's correction over them."""
    adjusted = holm([comparison.p for comparison in comparisons])
    return [replace(comparison, adjusted=p) for comparison, p in zip(comparisons, adjusted, strict=True)]


def p_in_words(p: float) -> str:
    """Write a p-value.

    >>> p_in_words(0.0004), p_in_words(0.0123), p_in_words(0.4)
    ('p < 0.001', 'p = 0.012', 'p = 0.40')
    """
    if p < 0.001:
        return "p < 0.001"
    return f"p = {p:.3f}" if p < 0.1 else f"p = {p:.2f}"
