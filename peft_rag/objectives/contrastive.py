"""Beside the task's own loss, a contrast: texts of one class close together, those of other classes far apart."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from peft_rag.errors import ConfigError
from peft_rag.objectives.base import Objective

if TYPE_CHECKING:
    from torch import Tensor

    from peft_rag.tasks.base import Task


@dataclass(frozen=True)
class ContrastiveObjective(Objective):
    """Draw texts of one class together and push others away, beside the task's loss: L = L_task + w·L_contrast.

    See `supervised_contrastive`. A batch is made of groups of one class each, drawn anew each epoch, so that every
    text has others of its class beside it; batches are therefore not grouped by length. With several processes, or
    accumulated batches, a text is compared with those of its own batch.

    Source: Khosla et al. 2020, arXiv:2004.11362.

    Attributes:
        temperature: T, above 0.
        weight: w, above 0.
        per_class: examples of each group, from 2.
    """

    temperature: float = 0.05
    weight: float = 1.0
    per_class: int = 2

    def __post_init__(self) -> None:
        for name in ("temperature", "weight"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"objective.{name} is {getattr(self, name)}; it must be above 0.")
        if self.per_class < 2:
            raise ConfigError(
                f"objective.per_class is {self.per_class}; a text needs another of its class beside it. Take 2 or more."
            )

    def check(self, task: Task, name: str) -> None:
        if not (task.one_decision and task.votes) or getattr(task, "multi_label", False):
            raise ConfigError(
                f"objective 'contrastive' compares texts of one class each, which those of task '{name}' do not have. "
                "Leave --objective at task."
            )

    def beside(self, features: Tensor, labels: Tensor) -> Tensor:
        return self.weight * supervised_contrastive(features, labels, self.temperature)

    def order(self, rows: Sequence[Mapping[str, Any]]) -> ClassGroups:
        return ClassGroups([int(row["labels"]) for row in rows], self.per_class)


def supervised_contrastive(features: Tensor, classes: Tensor, temperature: float) -> Tensor:
    """Return the supervised contrastive loss of a batch, in nats, a scalar.

    L = mean_i -1/|P(i)| Σ_{p∈P(i)} log( exp(z_i·z_p/T) / Σ_{a≠i} exp(z_i·z_a/T) ) with z = features / ‖features‖ and
    P(i) the other texts of the class of i; the mean is over the texts that have any, and 0 where none has.

    Args:
        features: ``(B, D)``.
        classes: ``(B,)``.
        temperature: T, above 0.

    Source: Khosla et al. 2020, arXiv:2004.11362, equation 2.
    """
    import torch
    from torch.nn.functional import normalize

    directions = normalize(features, dim=-1)
    itself = torch.eye(len(classes), dtype=torch.bool, device=features.device)
    logits = (directions @ directions.T / temperature).masked_fill(itself, -torch.inf)
    shares = logits.log_softmax(-1).masked_fill(itself, 0.0)
    alike = (classes[:, None] == classes[None, :]) & ~itself
    counts = alike.sum(-1)
    each = -(shares * alike).sum(-1) / counts.clamp(min=1)
    return each.sum() / (counts > 0).sum().clamp(min=1)


class ClassGroups:
    """An order of N examples in which those of one class come in groups; each epoch draws another by torch's seed."""

    def __init__(self, classes: Sequence[int], per_class: int) -> None:
        """Take the class of each example, and how many make a group; what is left of a class makes a smaller one."""
        self.classes, self.per_class = list(classes), per_class

    def __len__(self) -> int:
        return len(self.classes)

    def __iter__(self) -> Iterator[int]:
        import torch

        places: dict[int, list[int]] = {}
        for place in torch.randperm(len(self)).tolist():
            places.setdefault(self.classes[place], []).append(place)
        groups = [
            members[start : start + self.per_class]
            for members in places.values()
            for start in range(0, len(members), self.per_class)
        ]
        for number in torch.randperm(len(groups)).tolist():
            yield from groups[number]
