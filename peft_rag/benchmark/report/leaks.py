"""Test examples that stand in training data or corpus, and what is left of the scores without them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from peft_rag.benchmark.report.cells import Audit
from peft_rag.benchmark.report.results import Row


@dataclass(frozen=True)
class Leaks:
    """The leak audits of one setting; few-shot data differ by seed, and so do these.

    Attributes:
        audits: by seed; none where it was not taken.
        examples: in the test split.
    """

    audits: Mapping[int, Audit]
    examples: int

    @property
    def exact(self) -> tuple[int, int]:
        """Fewest and most test examples that stand there word for word."""
        return _range([len(audit.exact) for audit in self.audits.values()])

    @property
    def near(self) -> tuple[int, int]:
        """Fewest and most test examples that stand there nearly."""
        return _range([len(audit.near - audit.exact) for audit in self.audits.values()])

    @property
    def threshold(self) -> float | None:
        """The least similarity of near duplicates."""
        return next((audit.threshold for audit in self.audits.values()), None)

    def clean_value(self, row: Row) -> float | None:
        """Return a row's metric, on average over seeds, on test examples that have no duplicate at all."""
        means = []
        for seed in row.done:
            if seed not in self.audits:
                return None
            audit = self.audits[seed]
            kept = np.ones(self.examples, dtype=bool)
            kept[sorted(audit.exact | audit.near)] = False
            if not kept.any():
                return None
            means.append(row.tallies([seed]).value_on(kept))
        return sum(means) / len(means) if means else None

    def in_words(self) -> str:
        """Say what was found, in one sentence."""
        if not self.audits:
            return "No leak audit was taken."
        exact, near = _shown(self.exact), _shown(self.near)
        return (
            f"Of {self.examples:,} test examples, {exact} stand word for word in the training data or the corpus, and "
            f"{near} more nearly (similarity of at least {self.threshold})."
        )


def leaks_of(rows: Sequence[Row]) -> Leaks:
    """Gather the audits of a setting's rows; those of one seed are about the same data.

    Args:
        rows: with at least one seed done each.
    """
    audits: dict[int, Audit] = {}
    for row in rows:
        for seed in row.done:
            audit = row.cells[seed].audit
            if audit is not None:
                audits.setdefault(seed, audit)
    return Leaks(dict(sorted(audits.items())), len(rows[0].arm(rows[0].done[0]).tallies) if rows else 0)


def _range(counts: Sequence[int]) -> tuple[int, int]:
    return (min(counts), max(counts)) if counts else (0, 0)


def _shown(counts: tuple[int, int]) -> str:
    fewest, most = counts
    return f"{fewest:,}" if fewest == most else f"{fewest:,} to {most:,} (by seed)"
