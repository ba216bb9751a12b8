"""Relation extraction: what one part of a text is to another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from typing_extensions import Self

from peft_rag.errors import ConfigError, DataError
from peft_rag.records import Record, label_field
from peft_rag.registry import suggest
from peft_rag.tasks.base import Example
from peft_rag.tasks.classification import Classification
from peft_rag.tasks.scoring import class_scores, f1_tally

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from peft_rag.evaluation.bootstrap import Score


@dataclass(frozen=True)
class RelationExtraction(Classification):
    """The relation of a head to a tail, two marked parts of a text: p(y|x, head, tail), by a linear layer.

    Records hold ``tokens`` and in ``head`` and ``tail`` positions of tokens, counted from 0, or a ``text`` and in both
    characters (``[0, 5]`` or ``{"start": 0, "end": 5}``). The head's mean state and the tail's, one after the other,
    are judged. Neighbours that are read show their relation as ``Paris → France: capital of``.

    Source: mention pooling in Baldini Soares et al. 2019, arXiv:1906.03158, with means in place of maxima.

    Attributes:
        text_field: field of a record that holds the text.
        tokens_field: field that holds a list of tokens in its place.
        head_field, tail_field: fields that mark the two parts.
        label_field: field that holds the relation.
        id_field: field that names a record; running numbers where it is missing.
        group_field: field whose equals never retrieve each other; none if empty.
        no_relation: the label that says there is none, which scores leave out; none if empty.
        labels: the relations, in the order of the head's outputs; taken from the training data.
    """

    head_field: str = "head"
    tail_field: str = "tail"
    no_relation: str = ""

    @property
    def main_metric(self) -> str:
        return "micro_f1"

    @property
    def marks(self) -> tuple[str, ...]:
        return (self.head_field, self.tail_field)

    def _read(self, number: int, record: Record, labelled: bool) -> Example:
        example = super()._read(number, record, labelled)
        head, tail = example.spans
        if head == tail:
            raise DataError(
                f"{record.where}: '{self.head_field}' and '{self.tail_field}' both mark "
                f"'{example.text[slice(*head)]}', but a relation is between two parts. Correct one."
            )
        return example

    def _labels(self, record: Record) -> tuple[str, ...]:
        labels = label_field(record, self.label_field, "--label_field").values
        if len(labels) != 1:
            raise DataError(
                f"{record.where}: field '{self.label_field}' holds {len(labels)} relations ({', '.join(labels)}). Give "
                "one; for each other add a record with the same text."
            )
        return labels

    def with_labels_of(self, examples: Sequence[Example]) -> Self:
        learned = super().with_labels_of(examples)
        if self.no_relation and self.no_relation not in learned.labels:
            raise ConfigError(
                f"task.no_relation is '{self.no_relation}', which is no label of the training data."
                f"{suggest(self.no_relation, list(learned.labels))} Labels: {', '.join(learned.labels)}."
            )
        return learned

    def features(self, hidden: Tensor, mask: Tensor) -> Tensor:
        raise NotImplementedError("a relation is judged by its two parts")

    def evaluate(
        self,
        log_probs: Tensor,
        targets: Tensor,
        *,
        examples: Sequence[Example] = (),
        resamples: int = 1000,
        seed: int = 0,
    ) -> dict[str, Score]:
        """Return micro F1 (accuracy, where no label says that there is no relation), macro F1 and ECE."""
        from peft_rag.evaluation import scores

        ignored = self.labels.index(self.no_relation) if self.no_relation else None
        metrics = {
            "micro_f1": partial(scores.micro_f1, ignored=ignored),
            "macro_f1": partial(scores.macro_f1, ignored=ignored),
        }
        return class_scores(log_probs, targets, metrics, resamples=resamples, seed=seed)

    @property
    def statistic(self) -> str:
        return "f1" if self.no_relation else "mean"

    def tally(self, log_probs: Tensor, targets: Tensor, examples: Sequence[Example] = ()) -> NDArray[np.float64]:
        """Return whether each is right, ``(B, 1)``, or, of those that are relations, right, predicted and actual."""
        if not self.no_relation:
            return super().tally(log_probs, targets)
        none, predicted = self.labels.index(self.no_relation), log_probs.argmax(-1).to(targets.device)
        return f1_tally((predicted == targets) & (targets != none), predicted != none, targets != none)
