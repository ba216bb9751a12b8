"""What tasks share whose answers are labels, of whole texts or of parts that are marked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from typing_extensions import Self

from peft_rag.errors import DataError
from peft_rag.records import Record, label_field, name_field
from peft_rag.registry import suggest
from peft_rag.tasks.base import Example, Pools, Span, Task
from peft_rag.tasks.probe import fit_probe
from peft_rag.tasks.spans import character_span, marked_text, tokens_of

if TYPE_CHECKING:
    from torch import Tensor, nn

    from peft_rag.corpus import Document


@dataclass(frozen=True)
class Classification(Task):
    """Labels of texts, judged by a linear layer over pooled last hidden states.

    A text is judged as a whole, or by the parts of it that the fields `marks` mark: by the mean state of the tokens of
    each, one after the other. Either is scaled to length one. On a decoder a state knows only what stands before it.

    Attributes:
        text_field: field of a record that holds the text.
        tokens_field: field that holds a list of tokens in its place.
        label_field: field that holds the label.
        id_field: field that names a record; running numbers where it is missing.
        group_field: field whose equals never retrieve each other; none if empty.
        labels: the labels, in the order of the head's outputs; taken from the training data.
    """

    text_field: str = "text"
    tokens_field: str = "tokens"
    label_field: str = "label"
    id_field: str = "id"
    group_field: str = ""
    labels: tuple[str, ...] = ()

    @property
    def marks(self) -> tuple[str, ...]:
        """Fields of a record that mark the parts of its text that are judged; none where all of it is."""
        return ()

    @property
    def several(self) -> bool:
        """Whether a text can have several labels."""
        return False

    @property
    def pools_spans(self) -> bool:
        return bool(self.marks)

    def read(self, records: Sequence[Record], *, labelled: bool = True) -> list[Example]:
        return [self._read(number, record, labelled) for number, record in enumerate(records, start=1)]

    def _read(self, number: int, record: Record, labelled: bool) -> Example:
        text, spans = marked_text(record, self.text_field, self.tokens_field, self.marks)
        labels = self._labels(record) if labelled else None
        identity = name_field(record, self.id_field) or str(number)
        return Example(identity, text, labels, record.where, name_field(record, self.group_field), spans)

    def _labels(self, record: Record) -> tuple[str, ...]:
        return label_field(record, self.label_field, "--label_field", allow_empty_list=True).values

    @property
    def sample(self) -> str | dict[str, Any]:
        if not self.marks:
            return super().sample
        return {self.text_field: "Ada met Ben", **dict(zip(self.marks, ([0, 3], [8, 11]), strict=False))}

    def as_example(self, text: str, identity: str) -> Example:
        if self.marks:
            raise DataError(
                f"a bare text says nothing of {_listed(self.marks)}, which mark what is judged. Give records with them."
            )
        return super().as_example(text, identity)

    def example_of(self, document: Document, where: str) -> Example:
        """Return a document as a labelled example, its parts marked as in training or by fields of its own."""
        example = super().example_of(document, where)
        given = {name: document.metadata.get(name) for name in self.marks}
        if example.spans or not given or None in given.values():
            return example
        spans = [character_span(value, document.text, f"{where}: '{name}'") for name, value in given.items()]
        return replace(example, spans=tuple(spans))

    def shown_labels(self, document: Document) -> str:
        """Write a document's labels, and before them the parts that they are about: ``Paris → France: capital of``.

        Fields of a document that only share the name of a mark are none.
        """
        labels = super().shown_labels(document)
        try:
            spans = self.example_of(document, f"document '{document.id}'").spans if labels else ()
        except DataError:
            spans = ()
        parts = [document.text[slice(*span)] for span in spans]
        return f"{' → '.join(parts)}: {labels}" if parts else labels

    def with_labels_of(self, examples: Sequence[Example]) -> Self:
        labels = tuple(sorted({label for example in examples for label in example.labels or ()}))
        if len(labels) < (1 if self.several else 2):
            raise DataError(
                f"the training data has {len(labels)} distinct labels ({', '.join(labels)}) in field "
                f"'{self.label_field}'; a classifier needs two at least. Name the field with --label_field."
            )
        return replace(self, labels=labels)

    def targets(self, examples: Sequence[Example]) -> Tensor:
        """Return class indices ``(B,)``, or 0/1 rows ``(B, C)`` when multi-label."""
        import torch

        number = {label: index for index, label in enumerate(self.labels)}
        if not self.several:
            return torch.tensor([number[self._known(example)[0]] for example in examples], dtype=torch.long)
        rows = torch.zeros(len(examples), len(self.labels), dtype=torch.long)
        for row, example in enumerate(examples):
            rows[row, [number[label] for label in self._known(example)]] = 1
        return rows

    def _known(self, example: Example) -> tuple[str, ...]:
        labels = example.labels or ()
        if not labels and not self.several:
            raise DataError(f"{example.where}: has no label. Add one in field '{self.label_field}', or leave it out.")
        if len(labels) > 1 and not self.several:
            raise DataError(
                f"{example.where}: has {len(labels)} labels ({', '.join(labels)}), but this model was trained on one "
                "label a text. Give one label, or train on data with several."
            )
        for label in labels:
            if label not in self.labels:
                raise DataError(
                    f"{example.where}: label '{label}' does not occur in the training data "
                    f"({len(self.labels)} labels).{suggest(label, list(self.labels))} "
                    "Add training examples with it, or correct the record."
                )
        return labels

    def make_head(self, hidden_size: int) -> nn.Module:
        from torch import nn

        return nn.Linear(hidden_size * max(1, len(self.marks)), len(self.labels))

    def fit_head(self, head: nn.Module, features: Tensor, targets: Tensor, strength: float | None = None) -> None:
        """Fit a logistic regression (one against the rest when multi-label) and copy it into the head."""
        fit_probe(head, features, targets, len(self.labels), strength)

    def pools(self, example: Example, spans: Sequence[Span | None]) -> Pools:
        """Return the tokens of each part that is judged."""
        where = example.where or "the text"
        if len(example.spans) != len(self.marks):
            raise DataError(f"{where}: nothing marks {_listed(self.marks)} in it. Give it such fields.")
        marked = zip(self.marks, example.spans, strict=True)
        return [[tokens_of(part, example.text, spans, f"{where}: '{name}'") for name, part in marked]]

    def pooled(self, pools: Tensor) -> Tensor:
        """Join the means of a decision's parts ``(R·P, D)`` into one feature of length one ``(R, P·D)``."""
        from torch.nn.functional import normalize

        return normalize(pools.reshape(-1, len(self.marks) * pools.shape[-1]), dim=-1)

    def log_probs(self, logits: Tensor) -> Tensor:
        import torch
        from torch.nn.functional import logsigmoid

        logits = logits.float()
        if self.several:
            return torch.stack([logsigmoid(-logits), logsigmoid(logits)], dim=-1)
        return logits.log_softmax(-1)

    def loss(self, log_probs: Tensor, targets: Tensor) -> Tensor:
        return -log_probs.gather(-1, targets.unsqueeze(-1)).mean()

    def vote(self, targets: Tensor, asked: Tensor | None = None) -> Tensor:
        """Return one-hot probabilities: ``(…)`` to ``(…, C)``, or ``(…, C)`` to ``(…, C, 2)`` when multi-label."""
        from torch.nn.functional import one_hot

        return one_hot(targets, 2 if self.several else len(self.labels)).float()

    def decode(self, log_probs: Tensor, examples: Sequence[Example]) -> list[tuple[tuple[str, ...], float]]:
        best, chosen = log_probs.max(-1)
        if not self.several:
            pairs = zip(chosen.tolist(), best.tolist(), strict=True)
            return [((self.labels[index],), math.exp(value)) for index, value in pairs]
        return [
            (tuple(label for label, on in zip(self.labels, row, strict=True) if on), math.exp(value))
            for row, value in zip(chosen.tolist(), best.sum(-1).tolist(), strict=True)
        ]


def _listed(names: Sequence[str]) -> str:
    return " and ".join(f"'{name}'" for name in names)
