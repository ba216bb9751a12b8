"""Neighbours' labels as a second opinion, mixed with the model's own."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from typing_extensions import Self

from peft_rag.errors import ConfigError, RetrievalError
from peft_rag.fusion.base import Fusion, Memory, Outputs, Reader, Shown, Split, encode_inputs
from peft_rag.fusion.datastore import SEARCHES
from peft_rag.fusion.knn_choice import KS, Setting, Settings, choose_setting
from peft_rag.fusion.mixing import mix

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    import torch
    from numpy.typing import NDArray
    from torch import Tensor

    from peft_rag.corpus import Corpus
    from peft_rag.fusion.next_token import NeighbourTokens
    from peft_rag.retrieval.base import Neighbours
    from peft_rag.tasks.base import Task


@dataclass(frozen=True)
class KnnFusion(Fusion):
    """Neighbours' labels mixed with the model: p = λ·p_kNN + (1-λ)·p_model.

    p_kNN(y|x) = Σ_z π_z·[y_z = y] with π = softmax(s/T) over the k nearest labelled documents z, and s the cosine
    similarity in the chosen space. λ, T and k are chosen on validation, λ = 0 among them.

    Source: Khandelwal et al. 2020, arXiv:1911.00172 (kNN-LM), applied to classes.

    Attributes:
        space: ``tuned`` searches among the features of the tuned backbone, ``retriever`` among the sentence encoder's.
        k: neighbours that vote; None to choose.
        temperature: T; None to choose.
        weight: λ in [0, 1]; None to choose.
        search: ``exact`` compares a decision with all that is known, ``hnsw`` builds a graph over that, which misses
            few of the nearest and takes far less time where the tuned space holds many (tokens of texts).
    """

    space: Literal["tuned", "retriever"] = "tuned"
    k: int | None = None
    temperature: float | None = None
    weight: float | None = None
    search: Literal["exact", "hnsw"] = "exact"

    def __post_init__(self) -> None:
        if self.space not in ("tuned", "retriever"):
            raise ConfigError(f"fusion.space is '{self.space}'. Choose tuned or retriever.")
        if self.search not in SEARCHES:
            raise ConfigError(f"fusion.search is '{self.search}'. Choose {' or '.join(SEARCHES)}.")
        if self.k is not None and self.k < 1:
            raise ConfigError(f"fusion.k is {self.k}; at least one neighbour must vote. Use --fusion none for none.")
        if self.temperature is not None and not self.temperature > 0:
            raise ConfigError(f"fusion.temperature is {self.temperature}; it must be above 0.")
        if self.weight is not None and not 0 <= self.weight <= 1:
            raise ConfigError(f"fusion.weight is {self.weight}; λ lies in [0, 1].")

    @property
    def documents_needed(self) -> int:
        return self.k or 1

    @property
    def neighbours_wanted(self) -> int:
        return (self.k or max(KS)) if self.space == "retriever" else 0

    @property
    def needs_labels(self) -> bool:
        return True

    @property
    def needs_features(self) -> bool:
        return self.space == "tuned"

    def encode(self, split: Split, corpus: Corpus | None, reader: Reader) -> list[dict[str, Any]]:
        return encode_inputs(split, reader)

    @property
    def setting(self) -> Setting | None:
        """How neighbours vote; None before that is chosen."""
        if self.weight is None or self.temperature is None or self.k is None:
            return None
        return Setting(self.k, self.temperature, self.weight)

    @property
    def counts(self) -> bool:
        return self.weight != 0

    def share(self, found: Neighbours, memory: Memory | None, log_probs: Tensor | None) -> float | Tensor:
        """Return λ: one for all R decisions here, or one for each, ``(R,)``.

        Args:
            found: the neighbours that vote on them.
            memory: what their positions are rows of.
            log_probs: the model's own in nats, ``(R, …)``; None where a text is being written.
        """
        assert self.weight is not None
        return self.weight

    def combine(self, outputs: Outputs, split: Split, memory: Memory | None, task: Task) -> Tensor:
        """Return log(λ·p_kNN + (1-λ)·p_model); before λ, T and k are fitted, the model's own."""
        setting = self.setting
        if setting is None:
            return outputs.log_probs
        own, known = outputs.log_probs, remembered(memory)
        found = self._search(outputs, split, memory, setting.k)
        asked = task.targets(split.examples) if task.generates else None
        votes = neighbour_log_probs(found, known, task, setting.temperature, asked, own.dtype)
        return mix(own, votes, self.share(found, known, own))

    def fit(self, outputs: Outputs, split: Split, memory: Memory | None, task: Task, targets: Tensor) -> Self:
        """Choose k, T and λ on validation; see `peft_rag.fusion.knn_choice`."""
        if not self.counts:
            return self
        known = remembered(memory)
        settings = Settings.open(self.k, self.temperature, self.weight, len(known.targets))
        found, asked = self._search(outputs, split, memory, max(settings.ks)), targets if task.generates else None

        def votes(k: int, temperature: float) -> Tensor:
            return neighbour_log_probs(found.head(k), known, task, temperature, asked, outputs.log_probs.dtype)

        k, temperature, weight = choose_setting(settings, outputs.log_probs, votes, task, targets, split.examples)
        return replace(self, k=k, temperature=temperature, weight=weight)

    def with_given_neighbours(self) -> Self:
        return replace(self, space="retriever")

    def next_token(self, memory: Memory | None) -> NeighbourTokens | None:
        setting = self.setting
        if setting is None or not self.counts:
            return None
        from peft_rag.fusion.next_token import NeighbourTokens

        known = remembered(memory)
        return NeighbourTokens(known, setting.k, setting.temperature, lambda found: self.share(found, known, None))

    def voters(self, outputs: Outputs, split: Split, memory: Memory | None) -> Neighbours:
        if self.k is None:
            return super().voters(outputs, split, memory)
        return self._search(outputs, split, memory, self.k)

    def shown(self, outputs: Outputs, split: Split, memory: Memory | None) -> list[list[Shown]]:
        """Return the voting neighbours with λ·π_z as weight.

        Where an example takes several decisions, a document counts the mean over them, and its score is its highest.
        """
        setting = self.setting
        if setting is None:
            return super().shown(outputs, split, memory)
        found = self._search(outputs, split, memory, setting.k)
        weight, rows = self.share(found, memory, outputs.log_probs), []
        weights = [weight] * len(found) if isinstance(weight, (int, float)) else weight.tolist()
        for row, weight in enumerate(weights):
            pairs = found.row(row)
            raised = [math.exp((score - pairs[0][1]) / setting.temperature) for _, score in pairs]
            shares = [weight * value / sum(raised) for value in raised]
            rows.append([Shown(place, score, share) for (place, score), share in zip(pairs, shares, strict=True)])
        if outputs.decisions is None or memory is None or memory.decisions is None:
            return rows
        owners = memory.decisions.owners
        return [
            _by_document([rows[row] for row in outputs.decisions.rows(place)], owners) for place in range(len(split))
        ]

    def _search(self, outputs: Outputs, split: Split, memory: Memory | None, k: int) -> Neighbours:
        if self.space == "retriever":
            if split.neighbours is None:
                raise RetrievalError("fusion 'knn' was given no neighbours. Pass the corpus it was trained with.")
            return split.neighbours.head(k)
        known = remembered(memory)
        return known.nearest(outputs.features, k, forbidden_rows(outputs, split, known) or None)


def neighbour_log_probs(
    found: Neighbours,
    memory: Memory,
    task: Task,
    temperature: float,
    asked: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Return log p_kNN(y|x) = log Σ_z softmax(s/T)_z·[y_z = y] in nats, shaped as the task's log-probabilities.

    A query without any neighbour gets NaN, which `mix` reads as no opinion.

    Args:
        found: positions and scores of K neighbours for B queries; -1 and -inf pad.
        memory: the documents' targets.
        task: turns targets into probabilities.
        temperature: T, above 0.
        asked: the right tokens, where the task writes text and answers are about these alone.
        dtype: of the result; that of the scores by default.
    """
    import torch

    scores = torch.as_tensor(np.array(found.scores)).to(dtype or torch.float32)
    shares = (scores / temperature).softmax(-1)
    targets = memory.targets.cpu()[torch.as_tensor(np.array(found.positions)).clamp(min=0)]
    votes = task.vote(targets, asked)
    return (shares.reshape(*shares.shape, *[1] * (votes.dim() - 2)) * votes).sum(1).log()


def forbidden_rows(outputs: Outputs, split: Split, memory: Memory) -> Sequence[Collection[int]]:
    """Return the rows of a memory that each decision must not see; none where nothing is forbidden."""
    rows = memory.rows_of(split.forbidden)
    return rows if outputs.decisions is None or not rows else [rows[owner] for owner in outputs.decisions.owners]


def _by_document(rows: Sequence[Sequence[Shown]], owners: NDArray[np.int64]) -> list[Shown]:
    """Join the neighbours of an example's decisions, each a part of a document, into documents, heaviest first."""
    scores: dict[int, float] = {}
    weights: dict[int, float] = {}
    for one in (one for row in rows for one in row):
        document = int(owners[one.position])
        scores[document] = max(one.score, scores.get(document, -math.inf))
        weights[document] = weights.get(document, 0.0) + one.weight / len(rows)
    return [Shown(place, scores[place], weights[place]) for place in sorted(scores, key=lambda one: -weights[one])]


def remembered(memory: Memory | None) -> Memory:
    """Return what neighbours are rows of, or raise `RetrievalError` where there is nothing."""
    if memory is None:
        raise RetrievalError("fusion 'knn' needs the labelled corpus it was trained with. Pass it with --corpus.")
    return memory
