"""What a model answers: labels, their probability, and the neighbours behind them as a person reads them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from peft_rag.corpus import Corpus
    from peft_rag.fusion.base import Shown


@dataclass(frozen=True)
class NeighbourShown:
    """A neighbour as a person reads it: the document, how close it is, and how much it counted."""

    id: str
    text: str
    labels: tuple[str, ...]
    score: float
    weight: float


@dataclass(frozen=True)
class Prediction:
    """One answer: the labels, their probability, and the neighbours behind them when an explanation was asked for."""

    labels: tuple[str, ...]
    probability: float
    neighbours: tuple[NeighbourShown, ...] = ()


def explained(answer: Prediction, shown: Sequence[Shown], corpus: Corpus) -> Prediction:
    """Return an answer with the documents of the neighbours that a fusion shows for it."""
    neighbours = []
    for one in shown:
        document = corpus[one.position]
        neighbours.append(NeighbourShown(document.id, document.text, document.labels, one.score, one.weight))
    return replace(answer, neighbours=tuple(neighbours))
