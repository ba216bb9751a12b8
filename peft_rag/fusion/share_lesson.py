"""How much neighbours should count, learned from decisions whose answers are known, and whether that was worth it.

The decisions are those of validation. Those of training would be many more, but the model has learned their answers: it
is surer of them than it will ever be of others, and their neighbours in the tuned space stand closer than anyone's. (On
banking77 with ten examples a class under LoRA, one seed: 83.5 learned there, 83.4 without neighbours, 85.5 with `knn`.)

Examples are cut into parts, those of one group or one text into the same. A network that learned from the other parts
says λ on each part, at several moments of its training; the moment at which the decisions are likeliest in all parts
together is how long the network is trained that is kept, which learns from all of them.

Dims: R decisions, S moments of training.

Source: Stone 1974, doi:10.1111/j.2517-6161.1974.tb00994.x (cross-validatory choice).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from peft_rag.corpus import text_key
from peft_rag.decisions import Decisions
from peft_rag.fusion.knn_choice import convincing
from peft_rag.fusion.mixing import mix
from peft_rag.fusion.share_network import ShareNetwork, cross_fitted_shares
from peft_rag.tasks.base import LEAST_LOG_PROB, Example, Task

FOLDS = 5
_LEAST_EXAMPLES = 20


@dataclass(frozen=True, eq=False)
class Lesson:
    """Decisions to learn λ from.

    Attributes:
        evidence: on each, ``(R, E)``.
        own: log p_model in nats, ``(R, …)``, float64 as all here.
        votes: log p_kNN in nats, of the same shape; NaN where there is no neighbour.
        task: says how likely and how right answers are.
        targets: the right ones.
        examples: that the decisions are on.
        decisions: how many each example takes; None where each takes one.
    """

    evidence: Tensor
    own: Tensor
    votes: Tensor
    task: Task
    targets: Tensor
    examples: Sequence[Example]
    decisions: Decisions | None = None

    def answers(self, share: float | Tensor) -> Tensor:
        """Return log(λ·p_kNN + (1-λ)·p_model) in nats, as `peft_rag.tasks.base.LEAST_LOG_PROB` bounds it."""
        return mix(self.own, self.votes, share).clamp(min=LEAST_LOG_PROB)

    def likelihoods(self, share: float | Tensor) -> Tensor:
        """Return log p of what is right in nats, ``(R,)``."""
        return self.task.log_likelihood(self.answers(share), self.targets)

    def merit(self, share: float | Tensor) -> tuple[float, float]:
        """Return the task's main metric, and the mean log-likelihood."""
        return self.task.merit(self.answers(share), self.targets, self.examples)

    def loss(self, rows: Tensor, share: Tensor) -> Tensor:
        """Return what λ costs on some decisions: their mean negative log-likelihood in nats."""
        mixed = mix(self.own[rows], self.votes[rows], share)
        return -self.task.log_likelihood(mixed, self.targets[rows]).mean()

    def by_example(self, values: Tensor) -> Tensor:
        """Add up values of decisions ``(R,)`` for each example."""
        return values if self.decisions is None else self.decisions.sums(values)

    def folds(self) -> list[int]:
        """Return the part of each decision; examples of one group or one text are never in two."""
        places: dict[str, int] = {}
        keys = [f"group {one.group}" if one.group else f"text {text_key(one.asked)}" for one in self.examples]
        parts = [places.setdefault(key, len(places)) % FOLDS for key in keys]
        return parts if self.decisions is None else [parts[owner] for owner in self.decisions.owners]


def learned(lesson: Lesson, weight: float, hidden: int, seed: int) -> tuple[ShareNetwork, Tensor | None]:
    """Train a network on a lesson, as long as that helps networks on what they have not seen.

    Args:
        lesson: what it learns from.
        weight: λ that it starts with, one for all.
        hidden: size of its hidden layer.
        seed: of what is drawn.

    Returns:
        The network, and λ of each decision by one that had not learned from it, ``(R,)``; None, with an untrained
        network, where there are too few examples to tell.
    """

    def fresh(known: Tensor) -> ShareNetwork:
        return ShareNetwork.fresh(known, weight, hidden, torch.Generator().manual_seed(seed))

    folds = lesson.folds()
    if len(lesson.examples) < _LEAST_EXAMPLES or len(set(folds)) < FOLDS:
        return fresh(lesson.evidence), None
    shares = cross_fitted_shares(lesson.evidence, lesson.loss, folds, fresh, seed)
    likely = torch.stack([lesson.likelihoods(share).mean() for share in shares])
    look = int(likely.argmax())
    training = fresh(lesson.evidence).trained(lesson.evidence, lesson.loss, torch.Generator().manual_seed(seed))
    return next(itertools.islice(training, look, None)), shares[look]


def worth(lesson: Lesson, network: ShareNetwork, unseen: Tensor | None, weight: float) -> bool:
    """Say whether a network should decide λ, or λ be one for all.

    It should where what it says of decisions it has not seen makes them convincingly likelier than one λ for all, by
    example, and the main metric no worse; and where on validation it is no worse than the model without neighbours.

    Args:
        lesson: what it learned from.
        network: that network.
        unseen: from `learned`.
        weight: λ otherwise.
    """
    if unseen is None:
        return False
    gains = lesson.by_example(lesson.likelihoods(unseen) - lesson.likelihoods(weight))
    final = lesson.merit(network.share(lesson.evidence))
    return (
        convincing(gains)
        and lesson.merit(unseen)[0] >= lesson.merit(weight)[0]
        and final >= max(lesson.merit(weight), lesson.merit(0.0))
    )
