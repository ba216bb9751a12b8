"""Whether a live retriever still tells inputs apart."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any

from typing_extensions import Self

from peft_rag.fusion.base import READ

COLLAPSED = 0.25
"""Share of the frozen encoder's distinct documents below which the tower has collapsed."""


@dataclass(frozen=True)
class RetrievalSpread:
    """How far apart what a tower reads of N examples is.

    Attributes:
        documents_read: documents read, counted each time.
        distinct_documents: different ones among them.
        distinct_before: different ones among what the frozen encoder would have them read.
        prior_entropy: mean of -Σ_z π_z·log π_z over the examples with neighbours, in nats.
        most_entropy: what it would be if all π were equal.
    """

    documents_read: int
    distinct_documents: int
    distinct_before: int
    prior_entropy: float
    most_entropy: float

    @classmethod
    def of(
        cls,
        candidates: Sequence[Mapping[str, Any]],
        read: Sequence[Sequence[int]],
        weights: Sequence[Sequence[float]],
        k: int,
    ) -> Self:
        """Measure it.

        Args:
            candidates: encoded examples with all candidates, in the frozen encoder's order.
            read: the positions that the tower had each example read.
            weights: π of these.
            k: neighbours read at most.
        """
        before = [row.get(READ, ())[:k] for row in candidates]
        shares_of = weights or [()] * len(read)
        some = [(len(row), shares) for row, shares in zip(read, shares_of, strict=True) if len(row)]
        entropies = [-sum(share * math.log(share) for share in shares if share > 0) for _, shares in some]
        return cls(
            sum(map(len, read)),
            len(set(chain.from_iterable(read))),
            len(set(chain.from_iterable(before))),
            sum(entropies) / max(1, len(some)),
            sum(math.log(count) for count, _ in some) / max(1, len(some)),
        )

    @classmethod
    def from_metrics(cls, metrics: Mapping[str, float], prefix: str) -> Self | None:
        """Read it out of a trainer's numbers; None where they do not hold it."""
        names = list(cls.__dataclass_fields__)
        found = {name: metrics[f"{prefix}{name}"] for name in names if f"{prefix}{name}" in metrics}
        return cls(**found) if len(found) == len(names) else None  # type: ignore[arg-type]

    def to_dict(self) -> dict[str, float]:
        return asdict(self)

    @property
    def unique_share(self) -> float:
        """Different documents among those read."""
        return self.distinct_documents / max(1, self.documents_read)

    @property
    def collapsed(self) -> bool:
        """Whether many inputs are answered by the same few documents.

        That is, whether the tower reads less than `COLLAPSED` of the different documents that the frozen encoder finds
        for the same examples: a measure that a small corpus, or k of many, does not set off.
        """
        return self.distinct_documents < COLLAPSED * self.distinct_before

    def __str__(self) -> str:
        """Say it in a line."""
        return (
            f"retrieval: {self.unique_share:.0%} of {self.documents_read:,} documents read are different ones "
            f"({self.distinct_documents:,}; the frozen encoder: {self.distinct_before:,}), entropy of π "
            f"{self.prior_entropy:.2f} of {self.most_entropy:.2f} nats"
        )

    @property
    def warning(self) -> str:
        """What to do about a collapse; empty where there is none."""
        if not self.collapsed:
            return ""
        return (
            f"warning: the retrieval collapses: the query tower reads {self.distinct_documents:,} different documents "
            f"where the frozen encoder finds {self.distinct_before:,}. Lower --query_learning_rate, raise --rerank or "
            "--retriever_loss_temperature, or leave --query_method out."
        )
