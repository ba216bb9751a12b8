"""The encoded examples that training reads, some of them at times without their neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import Dataset

from peft_rag.config import check_retrieval_dropout
from peft_rag.fusion.base import Split
from peft_rag.fusion.none import NoFusion
from peft_rag.retrieval.drawn import random_neighbours

if TYPE_CHECKING:
    from peft_rag.model import RetrievalAugmentedModel
    from peft_rag.tasks.base import Example


class Rows(Dataset[dict[str, Any]]):
    """Encoded examples; whenever one is asked for, another encoding of it is given instead with probability P.

    The draw is torch's, like that of the order of the data: a seed repeats it, and a resumed run goes on with it.
    """

    def __init__(
        self,
        rows: Sequence[dict[str, Any]],
        others: Sequence[dict[str, Any]] = (),
        share: float = 0.0,
        examples: Sequence[Example] = (),
    ) -> None:
        """Take the encodings.

        Args:
            rows: of the examples.
            others: of the same examples; needed where the share is above 0.
            share: P.
            examples: what was encoded, where answers are scored.
        """
        self.rows, self.others, self.share, self.examples = rows, others, share, examples

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int) -> dict[str, Any]:
        dropped = self.share > 0 and float(torch.rand(())) < self.share
        return self.others[place] if dropped else self.rows[place]


@dataclass(frozen=True)
class RetrievalDropout:
    """With probability P a training step reads an example without its neighbours, or with random ones instead.

    A model that has read both answers when nothing is found, and learns to distrust neighbours that do not help.

    Attributes:
        share: P; with 0 nothing is drawn at all, with 1 no example is ever read with its neighbours.
        by: ``none`` reads the example alone; ``random`` with as many documents, drawn once an example and none that it
            must not see, under the similarities of those that were found.
        seed: of the documents drawn.
    """

    share: float = 0.0
    by: str = "none"
    seed: int = 0

    def __post_init__(self) -> None:
        check_retrieval_dropout(self.share, self.by)

    def rows(self, model: RetrievalAugmentedModel, split: Split) -> Rows:
        """Encode a split as training reads it, and as it is read where neighbours are dropped."""
        if not self.share:
            return Rows(model.candidates(split))
        if self.by == "none":
            others = model.encode(split, fusion=NoFusion())
        else:
            others = model.encode(self._with_random(model, split))
        return Rows(others) if self.share == 1 else Rows(model.candidates(split), others, self.share)

    def _with_random(self, model: RetrievalAugmentedModel, split: Split) -> Split:
        import numpy as np

        if split.neighbours is None or model.knowledge is None:
            return split
        documents, generator = len(model.knowledge.corpus), np.random.default_rng(self.seed)
        return replace(split, neighbours=random_neighbours(split.neighbours, documents, split.forbidden, generator))
