"""What an objective is: which loss a training step minimises, and in which order it takes the examples."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from peft_rag.tasks.base import Task


@dataclass(frozen=True)
class Objective:
    """The task's own loss and nothing else; other objectives add to it.

    A frozen dataclass of options. It is used in training alone, and an artefact need not know it.
    """

    def check(self, task: Task, name: str) -> None:
        """Raise `ConfigError` where a task, picked by this name, cannot be trained by the objective."""

    def beside(self, features: Tensor, labels: Tensor) -> Tensor | None:
        """Return what is added to the task's loss: a scalar, or None.

        Args:
            features: pooled last hidden states of a batch's decisions ``(R, F)``.
            labels: the task's targets of the same ``(R, …)``.
        """
        return None

    def order(self, rows: Sequence[Mapping[str, Any]]) -> Iterable[int] | None:
        """Return an order of the encoded training examples, drawn anew whenever it is gone through; None for any.

        Args:
            rows: encoded examples with their ``labels``.
        """
        return None
