"""What a task is: the contract between records, the head on the backbone, and the metrics."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from typing_extensions import Self

if TYPE_CHECKING:
    from torch import Tensor, nn

    from peft_rag.evaluation.bootstrap import Score
    from peft_rag.records import Record


LEAST_LOG_PROB = -100.0
"""What a log-probability counts as at least, in nats, where sums and differences must stay finite; torch's binary
cross-entropy draws the same line."""


@dataclass(frozen=True)
class Example:
    """One thing to classify.

    Attributes:
        id: unique in its split.
        text: what the backbone reads.
        labels: its labels; None when they are not known, as in prediction.
        where: file and line it came from, for messages.
        group: examples of one group never retrieve each other; empty if there are none.
    """

    id: str
    text: str
    labels: tuple[str, ...] | None = None
    where: str = ""
    group: str = ""


@dataclass(frozen=True)
class Task(ABC):
    """A task's settings and what it learned of its labels; a frozen dataclass, so that it survives JSON.

    Dims used below: B examples, T tokens, D hidden size, C classes.
    """

    @property
    @abstractmethod
    def main_metric(self) -> str:
        """Name of the metric that early stopping and fusion settings are chosen by."""

    @abstractmethod
    def read(self, records: Sequence[Record], *, labelled: bool = True) -> list[Example]:
        """Turn records into examples.

        Raises:
            DataError: a record misses a field or holds something else; the message names file, line and field.
        """

    @abstractmethod
    def with_labels_of(self, examples: Sequence[Example]) -> Self:
        """Return this task knowing the labels of the training examples."""

    @abstractmethod
    def targets(self, examples: Sequence[Example]) -> Tensor:
        """Return what the loss compares with, one row an example.

        Raises:
            DataError: an example has a label unseen in training.
        """

    @abstractmethod
    def make_head(self, hidden_size: int) -> nn.Module:
        """Return a fresh head from features ``(B, D)`` to logits."""

    @abstractmethod
    def fit_head(self, head: nn.Module, features: Tensor, targets: Tensor, strength: float | None = None) -> None:
        """Set the head to a linear probe of features ``(N, D)``.

        Args:
            head: from `make_head`.
            features: ``(N, D)``, held fixed.
            targets: of the N examples.
            strength: inverse of the probe's regularisation; more fits the training examples closer. None takes one
                that is soft enough to leave a method something to learn.
        """

    @abstractmethod
    def features(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Pool last hidden states ``(B, T, D)`` under a mask ``(B, T)`` into features ``(B, D)``."""

    @abstractmethod
    def log_probs(self, logits: Tensor) -> Tensor:
        """Turn logits into log-probabilities in nats whose last dimension sums to one in probability."""

    @abstractmethod
    def loss(self, log_probs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean negative log-likelihood in nats, a scalar."""

    def log_likelihood(self, log_probs: Tensor, targets: Tensor) -> Tensor:
        """Return log p(target) of each example in nats, ``(B,)``; a class counts as `LEAST_LOG_PROB` at least."""
        chosen = log_probs.gather(-1, targets.unsqueeze(-1)).clamp(min=LEAST_LOG_PROB)
        return chosen.flatten(1).sum(-1)

    @abstractmethod
    def vote(self, targets: Tensor) -> Tensor:
        """Turn targets of labelled documents into probabilities shaped as `log_probs` gives them."""

    @abstractmethod
    def evaluate(self, log_probs: Tensor, targets: Tensor, *, resamples: int = 1000, seed: int = 0) -> dict[str, Score]:
        """Score log-probabilities against targets; each metric by name with its interval."""

    def merit(self, log_probs: Tensor, targets: Tensor) -> tuple[float, float]:
        """Return what choices on validation are made by: the main metric, then the mean log-likelihood in nats."""
        scores = self.evaluate(log_probs, targets, resamples=0)
        return scores[self.main_metric].value, -float(self.loss(log_probs, targets))

    def right(self, log_probs: Tensor, targets: Tensor) -> Tensor:
        """Return the share of an example's decisions that are right, ``(B,)``, each 0 or 1 where it has one."""
        return (log_probs.argmax(-1) == targets).float().reshape(len(targets), -1).mean(-1)

    @abstractmethod
    def decode(self, log_probs: Tensor) -> list[tuple[tuple[str, ...], float]]:
        """Return, per example, the predicted labels and the probability of that prediction."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, settings: dict[str, Any]) -> Self:
        lists = {key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()}
        return cls(**lists)
