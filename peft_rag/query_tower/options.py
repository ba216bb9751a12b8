"""How a query tower is trained."""

from __future__ import annotations

from dataclasses import dataclass

from peft_rag.config import check_retriever_loss

USUAL_RERANK = 4
"""Times the neighbours that are read: how many the tower chooses them from, unless told otherwise."""


@dataclass(frozen=True)
class RetrieverTraining:
    """What a query tower learns from, and what it chooses among.

    Attributes:
        loss: ``marginal`` learns through the mixture's own loss; ``pdist`` and ``emdr2`` by a loss of their own
            (`peft_rag.query_tower.losses`), beside a reader to which π is given.
        weight: of that loss of its own in the sum.
        temperature: τ_g of ``pdist``.
        rerank: N documents found by the frozen encoder, of which each step reads the best by the live tower; 0 for
            `USUAL_RERANK` times those read.
        learning_rate: of the tower; 0 for that of the method on the reader.
    """

    loss: str = "marginal"
    weight: float = 1.0
    temperature: float = 1.0
    rerank: int = 0
    learning_rate: float = 0.0

    def __post_init__(self) -> None:
        check_retriever_loss(self.loss, self.weight, self.temperature, self.rerank, self.learning_rate)

    @property
    def through_mixture(self) -> bool:
        """Whether the loss of the reader reaches the tower."""
        return self.loss == "marginal"

    def candidates(self, k: int) -> int:
        """Return N where k neighbours are read."""
        return self.rerank or USUAL_RERANK * k
