"""What each neighbour did for an answer: its log-probability with all of them, and with one left out.

    Δ_z = log p(ŷ | x, Z) - log p(ŷ | x, Z∖{z})   in nats, above 0 where z spoke for ŷ

ŷ is what is predicted with all neighbours Z that took part. One that is left out is not replaced by the next nearest:
the others keep their order and their scores, the fusion weighs them anew, and how far the answer is mixed with that
without neighbours (`peft_rag.fusion.fallback`) stays. A fusion that reads its neighbours runs the backbone again for
each that is left out; one that lets them vote on what the model gave does not.

Dims: N examples, K neighbours, L passes with some of an example's neighbours.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from peft_rag.decisions import Decisions
from peft_rag.fusion.base import Outputs, Shown, Split
from peft_rag.fusion.fallback import scaled
from peft_rag.fusion.mixing import mix
from peft_rag.fusion.none import NoFusion
from peft_rag.prediction import NeighbourShown, Prediction
from peft_rag.retrieval.base import Neighbours

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from peft_rag.corpus import Corpus
    from peft_rag.model import RetrievalAugmentedModel
    from peft_rag.tasks.base import Task

MOST_DOCUMENTS = 64
"""Documents shown of an example whose words or tokens have neighbours of their own: the heaviest of many."""

_PASSES_AT_ONCE = 256
"""L at most: enough to batch inputs of like length, and the votes of 64 neighbours on 1,000 classes stay at 65 MB."""


@dataclass(frozen=True)
class _Pass:
    """An example asked again without some document, or without any."""

    row: int
    left_out: int | None

    def keeps(self, document: int) -> bool:
        return self.left_out is not None and document != self.left_out


@dataclass(frozen=True)
class _Answer:
    """What came of it: log p(ŷ) in nats of what was predicted with all neighbours, and the prediction, if asked for."""

    log_prob: float
    prediction: Prediction | None


def explained(
    model: RetrievalAugmentedModel,
    split: Split,
    outputs: Outputs,
    fused: Tensor,
    answers: Sequence[Prediction],
    batch_size: int = 64,
    progress: str = "",
) -> list[Prediction]:
    """Return answers with the neighbours behind them, the effect of each, and the answer without any.

    Args:
        model: what gave them.
        split: the N examples with what was retrieved for them; where texts were written, with these and their tokens.
        outputs: what the model gave for these, before fusion.
        fused: log-probabilities after fusion in nats, ``(N, …)``.
        answers: what the task decoded these into.
        batch_size: inputs run at once.
        progress: empty for no progress bars.
    """
    if model.knowledge is None:
        return list(answers)
    asked = _Asked.of(model, split, outputs)
    alone = None
    if 0 < model.gate < 1:
        given = model.outputs(split, fusion=NoFusion(), batch_size=batch_size, progress=progress)
        alone = given.log_probs
    predicted = model.task.targets(
        [replace(one, labels=said.labels) for one, said in zip(split.examples, answers, strict=True)]
    )
    decisions = Decisions.on(model.task, split.examples)
    known = decisions.sums(model.task.log_likelihood(fused, predicted)).tolist()
    passes = itertools.chain.from_iterable(itertools.starmap(_passes, enumerate(asked.shown)))
    chunks = math.ceil(sum(len(row) + (len(row) > 1) for row in asked.shown) / _PASSES_AT_ONCE)
    others: list[list[_Answer]] = [[] for _ in answers]
    for number in range(1, chunks + 1):
        part = list(itertools.islice(passes, _PASSES_AT_ONCE))
        title = progress and f"leaving neighbours out, part {number:,} of {chunks:,}"
        again = asked.again(part, batch_size, title)
        rows = [one.row for one in part]
        chosen = decisions.take(rows)
        if alone is not None:
            again = mix(alone[chosen], again, model.gate)
        log_probs = decisions.of(rows).sums(model.task.log_likelihood(again, predicted[chosen])).tolist()
        for row, log_prob, said in zip(rows, log_probs, _said(model.task, again, split.of(rows)), strict=True):
            others[row].append(_Answer(log_prob, said))
    corpus = model.knowledge.corpus
    return [_joined(*row, corpus) for row in zip(answers, known, asked.shown, others, strict=True)]


@dataclass(frozen=True)
class _Asked:
    """What was asked, with the neighbours that took part.

    Attributes:
        model: what was asked.
        split: the N examples.
        outputs: what the model gave for them, before fusion.
        shown: their neighbours.
        voters: the rows of the memory that vote on each decision; None for a fusion that reads its neighbours.
        owners: the document of each row of the memory; None where each row is a document.
    """

    model: RetrievalAugmentedModel
    split: Split
    outputs: Outputs
    shown: Sequence[Sequence[Shown]]
    voters: Neighbours | None
    owners: NDArray[np.int64] | None

    @classmethod
    def of(cls, model: RetrievalAugmentedModel, split: Split, outputs: Outputs) -> _Asked:
        memory, fusion = model.memory(), model.effective_fusion
        shown = scaled(fusion.shown(outputs, split, memory), model.gate)
        if fusion.reads_neighbours or outputs.decisions is None:
            owners = None
        else:
            owners = memory.decisions.owners if memory is not None and memory.decisions is not None else None
            shown = [row[:MOST_DOCUMENTS] for row in shown]
        voters = None if fusion.reads_neighbours else fusion.voters(outputs, split, memory)
        return cls(model, split, outputs, shown, voters, owners)

    def again(self, passes: Sequence[_Pass], batch_size: int, progress: str) -> Tensor:
        """Return log-probabilities in nats, ``(L, …)``, fused from the neighbours that each pass keeps."""
        model, rows = self.model, [one.row for one in passes]
        part = replace(self.split.of(rows), neighbours=self._kept(passes))
        if self.voters is None:
            given = model.outputs(part, batch_size=batch_size, progress=progress)
        else:
            given = self.outputs.of(rows)
        return model.fusion.with_given_neighbours().combine(given, part, model.memory(), model.task)

    def _kept(self, passes: Sequence[_Pass]) -> Neighbours:
        """Return what each pass keeps: the neighbours of an example that is read, or those that vote on a decision."""
        if self.voters is None:
            read = [[(one.position, one.score) for one in self.shown[asked.row]] for asked in passes]
            pairs = list(zip(passes, read, strict=True))
        else:
            counts = self.outputs.decisions
            pairs = [
                (asked, self.voters.row(number))
                for asked in passes
                for number in (counts.rows(asked.row) if counts else (asked.row,))
            ]
        return Neighbours.of_rows(
            [[(place, score) for place, score in row if asked.keeps(self._document(place))] for asked, row in pairs]
        )

    def _document(self, place: int) -> int:
        return place if self.owners is None else int(self.owners[place])


def _passes(row: int, shown: Sequence[Shown]) -> Iterator[_Pass]:
    """Leave each neighbour of an example out in turn, and last all of them: for a single one these are the same."""
    for one in shown:
        yield _Pass(row, one.position)
    if len(shown) > 1:
        yield _Pass(row, None)


def _said(task: Task, log_probs: Tensor, split: Split) -> list[Prediction | None]:
    """Return what is predicted then; a text is not written once more."""
    if task.generates:
        return [None] * len(split)
    return [Prediction(*said) for said in task.decode(log_probs, split.examples)]


def _joined(
    answer: Prediction, known: float, shown: Sequence[Shown], others: Sequence[_Answer], corpus: Corpus
) -> Prediction:
    """Return an answer with its neighbours; of the others the last had none of them."""
    neighbours = []
    for one, other in zip(shown, others, strict=False):
        document, effect = corpus[one.position], known - other.log_prob
        about = (document.id, document.text, document.labels, one.score, one.weight)
        without = None if other.prediction is None else other.prediction.labels
        neighbours.append(NeighbourShown(*about, effect, without))
    alone = others[-1].prediction if others else None
    return replace(answer, neighbours=tuple(neighbours), without_retrieval=alone)
