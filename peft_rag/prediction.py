"""What a model answers: labels, their probability, and the neighbours behind them as a person reads them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from peft_rag.tasks.base import Example


@dataclass(frozen=True)
class NeighbourShown:
    """A neighbour as a person reads it.

    Attributes:
        id: of the document.
        text: of the document.
        labels: of the document; empty where it has none.
        score: similarity to the example in the space it was found in; higher is closer.
        weight: how much it counted; the weights of one example sum to at most 1.
        effect: log p(prediction | all neighbours) - log p(prediction | all but this one) in nats; above 0 where it
            spoke for the prediction.
        labels_without: what would be predicted if this one were left out; None where that was not asked, because a text
            would have to be written once more.
    """

    id: str
    text: str
    labels: tuple[str, ...]
    score: float
    weight: float
    effect: float
    labels_without: tuple[str, ...] | None


@dataclass(frozen=True)
class Prediction:
    """One answer.

    Attributes:
        labels: what is predicted, or the text that was written.
        probability: of that prediction; of a text the geometric mean over its tokens.
        neighbours: those behind it, closest first, when an explanation was asked for; where each word or token has
            neighbours of its own, the documents these belong to, heaviest first.
        without_retrieval: what the same model answers with all of these left out; None where there are none.
        tokens: of a text that was written, its end among them; 0 where labels are picked.
        read: the example that it answers, with the passages found for it where these are part of it.
    """

    labels: tuple[str, ...]
    probability: float
    neighbours: tuple[NeighbourShown, ...] = ()
    without_retrieval: Prediction | None = None
    tokens: int = 0
    read: Example | None = None
