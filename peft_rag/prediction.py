"""What a model is asked and answers: labels, their probability, and the neighbours behind them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from peft_rag.errors import DataError
from peft_rag.records import Record
from peft_rag.tasks.base import Example

if TYPE_CHECKING:
    from peft_rag.tasks.base import Task


def asked(task: Task, texts: Sequence[str | Mapping[str, Any] | Example]) -> list[Example]:
    """Return texts and records as examples of a task; what are examples already stay as they are.

    Args:
        task: that is asked.
        texts: each a bare text, a record with the fields that the task reads, or an example.

    Raises:
        DataError: a single text is given, something that is none, or a record that the task cannot read.
    """
    if isinstance(texts, str):
        raise DataError(f"what is predicted is a list of texts, but one text is given. Write [{texts[:40]!r}].")
    if isinstance(texts, Mapping):
        raise DataError("what is predicted is a list of texts or records, but one record is given. Write [{…}].")
    wrong = [one for one in texts if not isinstance(one, (str, Mapping, Example))]
    if wrong:
        raise DataError(f"what is predicted is a list of texts or records, but {wrong[0]!r} is none.")
    given = [Record(one, "records", place, "row") for place, one in enumerate(texts, 1) if isinstance(one, Mapping)]
    read = iter(task.read(given, labelled=False) if given else [])
    return [_example(task, one, str(place)) or next(read) for place, one in enumerate(texts)]


def _example(task: Task, one: str | Mapping[str, Any] | Example, identity: str) -> Example | None:
    """Return an example, or a bare text as one; None for a record."""
    if isinstance(one, Example):
        return one
    return task.as_example(one, identity) if isinstance(one, str) else None


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
