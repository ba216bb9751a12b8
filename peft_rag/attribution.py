"""What each neighbour did for an answer: its log-probability with all of them, and with one left out.

    Δ_z = log p(ŷ | x, Z) - log p(ŷ | x, Z∖{z})   in nats, above 0 where z spoke for ŷ

ŷ is what is predicted with all neighbours Z that took part. One that is left out is not replaced by the next nearest:
the others keep their order and their scores, the fusion weighs them anew, and how far the answer is mixed with that
without neighbours (`peft_rag.fusion.fallback`) stays. A fusion that reads its neighbours runs the backbone again for
each that is left out; one that lets them vote on what the model gave does not. Of a written text ŷ, log p is the sum
over its tokens.

Dims: N examples, K neighbours, L passes with some of an example's neighbours.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from peft_rag.decisions import Decisions
from peft_rag.errors import ConfigError
from peft_rag.fusion.base import Outputs, Shown, Split
from peft_rag.fusion.fallback import scaled
from peft_rag.fusion.mixing import mix
from peft_rag.fusion.none import NoFusion
from peft_rag.prediction import NeighbourShown, Prediction
from peft_rag.retrieval.base import Neighbours

if TYPE_CHECKING:
    from torch import Tensor

    from peft_rag.corpus import Corpus
    from peft_rag.model import RetrievalAugmentedModel

_PASSES_AT_ONCE = 256
"""L at most: enough to batch inputs of like length, and the votes of 64 neighbours on 1,000 classes stay at 65 MB."""


Say = Callable[["Tensor", Split], "list[tuple[tuple[str, ...], float]]"]
"""Turns log-probabilities on the examples of a split into labels, or into a text, and their probability."""


@dataclass(frozen=True)
class _Pass:
    """An example asked again with some of its neighbours."""

    row: int
    kept: Sequence[Shown]


@dataclass(frozen=True)
class _Answer:
    """What came of it: the prediction then, and log p(ŷ) in nats of what was predicted with all neighbours."""

    prediction: Prediction
    log_prob: float


def explained(
    model: RetrievalAugmentedModel,
    split: Split,
    outputs: Outputs,
    fused: Tensor,
    answers: Sequence[Prediction],
    batch_size: int = 64,
    progress: str = "",
    say: Say | None = None,
) -> list[Prediction]:
    """Return answers with the neighbours behind them, the effect of each, and the answer without any.

    Args:
        model: what gave them.
        split: the N examples with what was retrieved for them; where answers are texts, each labelled with its own.
        outputs: what the model gave for these, before fusion.
        fused: log-probabilities after fusion in nats, ``(N, …)``.
        answers: what these were turned into.
        batch_size: inputs run at once.
        progress: empty for no progress bars.
        say: turns other log-probabilities into answers; as the task decodes them by default.
    """
    if model.knowledge is None:
        return list(answers)
    if not (model.task.one_decision or model.fusion.reads_neighbours):
        raise ConfigError(
            "an explanation leaves out one neighbour after the other, but here every word has neighbours of its own. "
            "Predict without --explain, or train with a fusion that reads neighbours (--fusion concat)."
        )
    shown = scaled(model.effective_fusion.shown(outputs, split, model.memory()), model.gate)
    alone = None
    if 0 < model.gate < 1:
        given = model.outputs(split, fusion=NoFusion(), batch_size=batch_size, progress=progress)
        alone = given.log_probs
    predicted = model.task.targets(
        [replace(one, labels=said.labels) for one, said in zip(split.examples, answers, strict=True)]
    )
    decisions = Decisions.on(model.task, split.examples)
    known = decisions.sums(model.task.log_likelihood(fused, predicted)).tolist()
    passes = itertools.chain.from_iterable(itertools.starmap(_passes, enumerate(shown)))
    chunks = math.ceil(sum(len(row) + (len(row) > 1) for row in shown) / _PASSES_AT_ONCE)
    others: list[list[_Answer]] = [[] for _ in answers]
    for number in range(1, chunks + 1):
        part = list(itertools.islice(passes, _PASSES_AT_ONCE))
        title = progress and f"leaving neighbours out, part {number:,} of {chunks:,}"
        rows, asked = [one.row for one in part], _with_kept(split, part)
        again = _asked_again(model, asked, outputs, rows, batch_size, title)
        chosen = decisions.take(rows)
        if alone is not None:
            again = mix(alone[chosen], again, model.gate)
        log_probs = decisions.of(rows).sums(model.task.log_likelihood(again, predicted[chosen])).tolist()
        said_again = say(again, asked) if say else model.task.decode(again, asked.examples)
        for row, said, log_prob in zip(rows, said_again, log_probs, strict=True):
            others[row].append(_Answer(Prediction(*said), log_prob))
    corpus = model.knowledge.corpus
    return [_joined(*row, corpus) for row in zip(answers, known, shown, others, strict=True)]


def _passes(row: int, shown: Sequence[Shown]) -> Iterator[_Pass]:
    """Leave each neighbour of an example out in turn, and last all of them: for a single one these are the same."""
    for place in range(len(shown)):
        yield _Pass(row, [*shown[:place], *shown[place + 1 :]])
    if len(shown) > 1:
        yield _Pass(row, [])


def _with_kept(split: Split, passes: Sequence[_Pass]) -> Split:
    """Return the examples that are asked again, with the neighbours that each pass keeps."""
    kept = Neighbours.of_rows([[(one.position, one.score) for one in asked.kept] for asked in passes])
    return replace(split.of([one.row for one in passes]), neighbours=kept)


def _asked_again(
    model: RetrievalAugmentedModel,
    part: Split,
    outputs: Outputs,
    rows: Sequence[int],
    batch_size: int,
    progress: str,
) -> Tensor:
    """Return log-probabilities in nats, ``(L, …)``, fused from the neighbours of a part of the examples."""
    if model.fusion.reads_neighbours:
        given = model.outputs(part, batch_size=batch_size, progress=progress)
    else:
        given = outputs.of(rows)
    return model.fusion.with_given_neighbours().combine(given, part, model.memory(), model.task)


def _joined(
    answer: Prediction, known: float, shown: Sequence[Shown], others: Sequence[_Answer], corpus: Corpus
) -> Prediction:
    """Return an answer with its neighbours; of the others the last had none of them."""
    neighbours = []
    for one, other in zip(shown, others, strict=False):
        document, effect = corpus[one.position], known - other.log_prob
        about = (document.id, document.text, document.labels, one.score, one.weight)
        neighbours.append(NeighbourShown(*about, effect, other.prediction.labels))
    alone = others[-1].prediction if others else None
    return replace(answer, neighbours=tuple(neighbours), without_retrieval=alone)
