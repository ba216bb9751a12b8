"""Rows of decisions and the examples they belong to: those of an example stand after each other.

Dims: N examples, R decisions on them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from peft_rag.tasks.base import Example, Task


@dataclass(frozen=True)
class Decisions:
    """How many decisions each of N examples takes.

    Attributes:
        counts: one number an example.
    """

    counts: Sequence[int]

    @classmethod
    def on(cls, task: Task, examples: Sequence[Example]) -> Decisions:
        """Count a task's decisions on examples."""
        return cls([task.decisions(example) for example in examples])

    @cached_property
    def ends(self) -> NDArray[np.int64]:
        """The row after the last of each example, ``(N,)``."""
        return np.cumsum(np.asarray(self.counts, dtype=np.int64))

    @cached_property
    def owners(self) -> NDArray[np.int64]:
        """The example of each row, ``(R,)``."""
        return np.repeat(np.arange(len(self.counts)), self.counts)

    def rows(self, place: int) -> range:
        """Return the rows of an example."""
        return range(int(self.ends[place]) - self.counts[place], int(self.ends[place]))

    def take(self, places: Sequence[int]) -> list[int]:
        """Return the rows of some examples, in the order these are named.

        >>> Decisions([1, 2, 1]).take([2, 1])
        [3, 1, 2]
        """
        return [row for place in places for row in self.rows(place)]

    def of(self, places: Sequence[int]) -> Decisions:
        """Return those of some examples, in the order these are named."""
        return Decisions([self.counts[place] for place in places])

    def sums(self, values: Tensor) -> Tensor:
        """Add up values ``(R,)`` of each example's decisions: ``(N,)``."""
        import torch

        owners = torch.as_tensor(self.owners, device=values.device)
        return torch.zeros(len(self.counts), dtype=values.dtype, device=values.device).index_add(0, owners, values)
