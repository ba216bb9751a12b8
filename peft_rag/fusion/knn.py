"""Neighbours' labels as a second opinion, mixed with the model's own."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from typing_extensions import Self

from peft_rag.errors import ConfigError, RetrievalError
from peft_rag.fusion.base import Fusion, Memory, Outputs, Reader, Shown, Split, encode_inputs
from peft_rag.fusion.mixing import mix
from peft_rag.tasks.base import LEAST_LOG_PROB

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from peft_rag.corpus import Corpus
    from peft_rag.fusion.next_token import NeighbourTokens
    from peft_rag.retrieval.base import Neighbours
    from peft_rag.tasks.base import Task

_KS = (1, 2, 4, 8, 16, 32, 64)
_TEMPERATURES = (0.01, 0.02, 0.05, 0.1, 0.2)
_WEIGHTS = tuple(step / 20 for step in range(21))
_USUAL_K, _USUAL_TEMPERATURE, _USUAL_WEIGHT = 16, 0.05, 0.3


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
    """

    space: Literal["tuned", "retriever"] = "tuned"
    k: int | None = None
    temperature: float | None = None
    weight: float | None = None

    def __post_init__(self) -> None:
        if self.space not in ("tuned", "retriever"):
            raise ConfigError(f"fusion.space is '{self.space}'. Choose tuned or retriever.")
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
        return (self.k or max(_KS)) if self.space == "retriever" else 0

    @property
    def needs_labels(self) -> bool:
        return True

    @property
    def needs_features(self) -> bool:
        return self.space == "tuned"

    def encode(self, split: Split, corpus: Corpus | None, reader: Reader) -> list[dict[str, Any]]:
        return encode_inputs(split, reader)

    def combine(self, outputs: Outputs, split: Split, memory: Memory | None, task: Task) -> Tensor:
        """Return log(λ·p_kNN + (1-λ)·p_model); before λ, T and k are fitted, the model's own."""
        if self.weight is None or self.temperature is None or self.k is None:
            return outputs.log_probs
        found = self._search(outputs, split, memory, self.k)
        asked = task.targets(split.examples) if task.generates else None
        votes = neighbour_log_probs(found, _remembered(memory), task, self.temperature, asked)
        return mix(outputs.log_probs, votes, self.weight)

    def fit(self, outputs: Outputs, split: Split, memory: Memory | None, task: Task, targets: Tensor) -> Self:
        """Choose k, T and λ on validation: the usual setting, unless another is convincingly better.

        The usual one (k 16, T 0.05, λ 0.3) was best over 5 to 20 training examples a class of banking77; a tenth of so
        few is too little to choose among hundreds of settings, whose best by chance alone answered 0.3 to 1.0 points
        less of the 2,000 examples held back. The best by the task's main metric, and among equals by the mean
        log-likelihood, is taken where it is right about more examples than the usual one by over two standard errors of
        the difference. Else, where the usual one is worse than no neighbours at all, λ alone is chosen, 0 among them.

        A log-probability counts as `LEAST_LOG_PROB` at least: where λ = 1 is given, a target that no neighbour votes
        for must not make every choice equally bad.
        """
        known = len(_remembered(memory).targets)
        ks = [self.k] if self.k else [k for k in _KS if k <= known]
        temperatures = [self.temperature] if self.temperature else _TEMPERATURES
        weights = [self.weight] if self.weight is not None else _WEIGHTS
        usual = (
            self.k or max(k for k in ks if k <= _USUAL_K),
            self.temperature or _USUAL_TEMPERATURE,
            _USUAL_WEIGHT if self.weight is None else self.weight,
        )
        found, asked = self._search(outputs, split, memory, max(ks)), targets if task.generates else None

        def votes(k: int, temperature: float) -> Tensor:
            return neighbour_log_probs(found.head(k), _remembered(memory), task, temperature, asked)

        def mixed(voted: Tensor, weight: float) -> Tensor:
            return mix(outputs.log_probs, voted, weight).clamp(min=LEAST_LOG_PROB)

        merits: dict[tuple[int, float, float], tuple[float, float]] = {}
        for k, temperature in itertools.product(ks, temperatures):
            voted = votes(k, temperature)
            for weight in weights:
                merits[k, temperature, weight] = task.merit(mixed(voted, weight), targets, split.examples)
        best = max(merits, key=lambda setting: merits[setting])
        right, by_habit = (task.right(mixed(votes(*one[:2]), one[2]), targets) for one in (best, usual))
        if _convincing(right - by_habit):
            chosen = best
        elif merits[usual] < merits.get((*usual[:2], 0.0), merits[usual]):
            chosen = max((one for one in merits if one[:2] == usual[:2]), key=lambda one: merits[one])
        else:
            chosen = usual
        k, temperature, weight = chosen
        return replace(self, k=k, temperature=temperature, weight=weight)

    def with_given_neighbours(self) -> Self:
        return replace(self, space="retriever")

    def next_token(self, memory: Memory | None) -> NeighbourTokens | None:
        if not self.weight or self.temperature is None or self.k is None:
            return None
        from peft_rag.fusion.next_token import NeighbourTokens

        return NeighbourTokens(_remembered(memory), self.k, self.temperature, self.weight)

    def voters(self, outputs: Outputs, split: Split, memory: Memory | None) -> Neighbours:
        if self.k is None:
            return super().voters(outputs, split, memory)
        return self._search(outputs, split, memory, self.k)

    def shown(self, outputs: Outputs, split: Split, memory: Memory | None) -> list[list[Shown]]:
        """Return the voting neighbours with λ·π_z as weight.

        Where an example takes several decisions, a document counts the mean over them, and its score is its highest.
        """
        if self.weight is None or self.temperature is None or self.k is None:
            return super().shown(outputs, split, memory)
        found = self._search(outputs, split, memory, self.k)
        rows = []
        for row in range(len(found)):
            pairs = found.row(row)
            raised = [math.exp((score - pairs[0][1]) / self.temperature) for _, score in pairs]
            shares = [self.weight * value / sum(raised) for value in raised]
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
        from peft_rag.retrieval.vectors import exact_search

        known = _remembered(memory).features
        if known is None:
            raise RetrievalError("fusion 'knn' searches the tuned space, but the corpus was not encoded.")
        forbidden = forbidden_rows(outputs, split, _remembered(memory)) or None
        return exact_search(unit(outputs.features), unit(known), k, forbidden)


def _convincing(gains: Tensor) -> bool:
    """Say whether a gain on each of N decisions ``(N,)`` is above 0 in the mean by over two standard errors."""
    gains = gains.double()
    return len(gains) > 1 and float(gains.mean()) > 2 * float(gains.std()) / math.sqrt(len(gains))


def neighbour_log_probs(
    found: Neighbours, memory: Memory, task: Task, temperature: float, asked: Tensor | None = None
) -> Tensor:
    """Return log p_kNN(y|x) = log Σ_z softmax(s/T)_z·[y_z = y] in nats, shaped as the task's log-probabilities.

    A query without any neighbour gets NaN, which `mix` reads as no opinion.

    Args:
        found: positions and scores of K neighbours for B queries; -1 and -inf pad.
        memory: the documents' targets.
        task: turns targets into probabilities.
        temperature: T, above 0.
        asked: the right tokens, where the task writes text and answers are about these alone.
    """
    import torch

    scores = torch.as_tensor(np.array(found.scores))
    shares = (scores / temperature).softmax(-1)
    targets = memory.targets.cpu()[torch.as_tensor(np.array(found.positions)).clamp(min=0)]
    votes = task.vote(targets, asked)
    return (shares.reshape(*shares.shape, *[1] * (votes.dim() - 2)) * votes).sum(1).log()


def forbidden_rows(outputs: Outputs, split: Split, memory: Memory) -> Sequence[Collection[int]]:
    """Return the rows of a memory that each decision must not see; none where nothing is forbidden."""
    if not split.forbidden or memory.decisions is None or outputs.decisions is None:
        return split.forbidden
    rows = [memory.decisions.take(sorted(places)) for places in split.forbidden]
    return [rows[owner] for owner in outputs.decisions.owners]


def unit(features: Tensor) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return features ``(N, D)`` scaled to length one, as float32 in NumPy."""
    from torch.nn.functional import normalize

    scaled: np.ndarray[Any, np.dtype[np.float32]] = normalize(features.float(), dim=-1).cpu().numpy()
    return scaled


def _by_document(rows: Sequence[Sequence[Shown]], owners: NDArray[np.int64]) -> list[Shown]:
    """Join the neighbours of an example's decisions, each a part of a document, into documents, heaviest first."""
    scores: dict[int, float] = {}
    weights: dict[int, float] = {}
    for one in (one for row in rows for one in row):
        document = int(owners[one.position])
        scores[document] = max(one.score, scores.get(document, -math.inf))
        weights[document] = weights.get(document, 0.0) + one.weight / len(rows)
    return [Shown(place, scores[place], weights[place]) for place in sorted(scores, key=lambda one: -weights[one])]


def _remembered(memory: Memory | None) -> Memory:
    if memory is None:
        raise RetrievalError("fusion 'knn' needs the labelled corpus it was trained with. Pass it with --corpus.")
    return memory
