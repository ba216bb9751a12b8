"""The neighbours that a live query tower chooses from: found once, ranked anew in each step.

Dims: B examples, R decisions on them, N candidates of an example at most, K of them read, V of a vector.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from peft_rag.fusion.base import PASSAGES, READ, SCORES, Split
from peft_rag.fusion.batching import PASSAGE_EXAMPLES, PASSAGE_SCORES
from peft_rag.fusion.marginal import MarginalFusion
from peft_rag.retrieval.tuned import as_vector_retriever, indexed

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from peft_rag.model import RetrievalAugmentedModel
    from peft_rag.query_tower.tower import QueryTower

ASKED = "asked"
"""Key under which an encoded example says what a live tower needs to rank its passages; never given to the model."""


@dataclass(frozen=True)
class Asked:
    """What the passages of an encoded example are ranked by.

    Attributes:
        text: what is searched for.
        vectors: of the N documents under `READ`, ``(N, V)``.
    """

    text: str
    vectors: NDArray[np.float32]


@dataclass(frozen=True)
class Unranked:
    """Encoded examples on their way to the model, where a live tower chooses among their passages."""

    rows: Sequence[dict[str, Any]]


def unranked_batch(rows: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """Make one batch of encoded examples for a live tower, their targets apart; None where there is nothing to rank."""
    if not any(ASKED in row for row in rows):
        return None
    batch: dict[str, Any] = {"unranked": Unranked([{k: v for k, v in row.items() if k != "labels"} for row in rows])}
    if "labels" in rows[0]:
        batch["labels"] = torch.cat([row["labels"] for row in rows])
    return batch


@dataclass(frozen=True)
class Ranked:
    """Encoded examples with the passages a tower has chosen, best first.

    Attributes:
        rows: with K passages each at most.
        scores: of these, ``(B, K)``, with gradients to the tower; -inf where there are fewer. An example that is read
            without neighbours has one of 0, as in `peft_rag.fusion.batching.passages_of`.
    """

    rows: list[dict[str, Any]]
    scores: Tensor

    def live(self, batch: dict[str, Tensor], *, learning: bool) -> dict[str, Tensor]:
        """Return a batch of the rows with live scores in place of numbers.

        Args:
            batch: from `peft_rag.fusion.batching.collate`.
            learning: whether the gradient of what is made of the scores reaches the tower.
        """
        if PASSAGE_SCORES not in batch:
            return batch
        scores = self.scores if learning else self.scores.detach()
        return batch | {PASSAGE_SCORES: scores[batch[PASSAGE_EXAMPLES]]}


def candidate_rows(model: RetrievalAugmentedModel, split: Split) -> list[dict[str, Any]]:
    """Encode a split as training reads it: with all passages that a live tower chooses from, where there is one.

    Args:
        model: with a tower, or without: then its own encoding is all.
        split: with at least as many neighbours as the tower chooses from, found by the frozen encoder.
    """
    fusion, tower, knowledge = model.fusion, model.tower, model.knowledge
    if tower is None or knowledge is None or not isinstance(fusion, MarginalFusion):
        return model.encode(split)
    rows = model.encode(split, fusion=replace(fusion, k=tower.options.candidates(fusion.k)))
    retriever = indexed(as_vector_retriever(knowledge.retriever, knowledge.retriever_name), knowledge.corpus)
    for row, example in zip(rows, split.examples, strict=True):
        if PASSAGES in row:
            row[ASKED] = Asked(example.asked, retriever.vectors_of(np.array(row[READ], dtype=np.int64)))
    return rows


def ranked(tower: QueryTower, rows: Sequence[dict[str, Any]], k: int) -> Ranked:
    """Choose the k best passages of each example by the tower as it is now.

    Args:
        tower: gives the scores.
        rows: from `candidate_rows`; those without `ASKED` keep their passages and scores.
        k: passages kept of each at most.
    """
    places = [place for place, row in enumerate(rows) if ASKED in row]
    live = _scores(tower, [rows[place][ASKED] for place in places]) if places else None
    kept = [dict(row) for row in rows]
    columns = [torch.tensor(row[SCORES] if PASSAGES in row else [0.0]) for row in rows]
    if live is not None:
        order = live.argsort(dim=-1, descending=True, stable=True)
        for number, place in enumerate(places):
            row = kept[place]
            best = order[number, : min(k, len(row.pop(ASKED).vectors))]
            columns[place] = live[number, best]
            for name in (PASSAGES, READ):
                row[name] = [row[name][candidate] for candidate in best.tolist()]
            row[SCORES] = columns[place].tolist()
    device = next(tower.parameters()).device
    padded = torch.nn.utils.rnn.pad_sequence([column.to(device) for column in columns], True, -torch.inf)
    return Ranked(kept, padded)


def _scores(tower: QueryTower, asked: Sequence[Asked]) -> Tensor:
    """Return the live scores of candidates, ``(Q, N)``."""
    counts = [len(one.vectors) for one in asked]
    documents = np.zeros((len(asked), max(counts), asked[0].vectors.shape[1]), dtype=np.float32)
    for row, one in enumerate(asked):
        documents[row, : len(one.vectors)] = one.vectors
    mask = np.arange(max(counts)) < np.array(counts)[:, None]
    return tower.scores([one.text for one in asked], documents, mask)
