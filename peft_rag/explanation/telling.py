"""How the answers of a task are told: labels picked, parts of a text named, texts written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from peft_rag.corpus import Document
from peft_rag.errors import PeftRagError
from peft_rag.explanation.words import MEANINGS, PICKED, Voice, beginning, listed
from peft_rag.tasks.base import Example, Span, Task

if TYPE_CHECKING:
    from peft_rag.prediction import NeighbourShown

Parts = Sequence[tuple[Span, str]]
"""Parts of a text, each with what it is, in order."""

_SHORT = 120
_WRITTEN = (
    "Probability",
    "How likely the model held each piece (token) of its answer when it wrote it: the geometric mean over all of them.",
)


@dataclass(frozen=True)
class Telling:
    """How what a task answers is told.

    Attributes:
        task: whose answers these are.
        reads_neighbours: whether the model reads passages, or lets them vote.
    """

    task: Task
    reads_neighbours: bool = False

    @property
    def names(self) -> bool:
        """Whether answers name parts of a text."""
        return self.task.named_parts(Example("", ""), ()) is not None

    @property
    def way(self) -> str:
        """How passages enter an answer, in sentences."""
        if self.reads_neighbours:
            return "The model reads these passages together with the text."
        if self.task.generates:
            return (
                "The model writes piece by piece; before each, the pieces that stand at the most similar places of "
                "these passages vote on it, and their vote is mixed in."
            )
        if self.names:
            return (
                "The model judges each word; the most similar words of these passages then vote on it, and their vote "
                "is mixed in."
            )
        return "The model answers from the text; the labels of these passages then vote, and their vote is mixed in."

    @property
    def asked_again(self) -> str:
        """What was done with each passage left out."""
        return "the same answer was judged again" if self.task.generates else "the model was asked again"

    @property
    def meanings(self) -> Sequence[tuple[str, str]]:
        """What the numbers mean, each by its name."""
        return (_WRITTEN, *MEANINGS[1:]) if self.task.generates else MEANINGS

    def parts(self, example: Example, labels: tuple[str, ...]) -> Parts:
        """Return the parts of an example's text that labels name."""
        return self.task.named_parts(example, labels) or ()

    def document_parts(self, one: NeighbourShown) -> Parts:
        """Return the parts of a passage that its labels name; none where these are not one for each word."""
        if not self.names:
            return ()
        try:
            return self.parts(self.task.example_of(_document(one), one.id), one.labels)
        except PeftRagError:
            return ()

    def voice(self, example: Example) -> Voice:
        """Return how sentences speak of the answers to an example, and of passages."""
        if self.task.generates:
            return Voice(_quoted, self._answered, in_numbers=False)
        if self.names:
            return Voice(partial(self._says, example), self._naming)
        if not self.task.votes:
            return Voice(partial(self._takes, example), self._answered)
        return PICKED

    def taken(self, example: Example, labels: Sequence[str]) -> str:
        """Return what labels take out of the example itself, where the task's do not vote; nothing for no answer."""
        answer = self.task.answer(example, tuple(labels))
        return str(answer.get("choice", answer.get("answer", ", ".join(labels))))

    def _takes(self, example: Example, labels: Sequence[str]) -> str:
        taken = self.taken(example, labels)
        return _quoted([taken]) if taken else "that the text holds no answer"

    def _says(self, example: Example, labels: Sequence[str]) -> str:
        parts = self.parts(example, tuple(labels))
        return listed([f"“{example.text[slice(*span)]}” ({kind})" for span, kind in parts]) or "that nothing is named"

    def _answered(self, one: NeighbourShown) -> str:
        answer = self.task.shown_labels(_document(one)) if one.text and one.labels else ""
        return f"with the answer {_quoted([answer])}" if answer else ""

    def _naming(self, one: NeighbourShown) -> str:
        return f"naming {self.task.shown_labels(_document(one))}" if one.labels else ""


def _document(one: NeighbourShown) -> Document:
    return Document(one.id, one.text, one.labels)


def _quoted(labels: Sequence[str]) -> str:
    written = beginning(labels[0], _SHORT) if labels else ""
    return f"“{written}”" if written else "an empty text"
