"""The head that scores the choices of a question, as many as it has."""

from __future__ import annotations

import math

from torch import Tensor, nn


class ChoiceScores(nn.Module):
    """One linear layer without bias for every choice: s_c = w·h_c, and -inf for a choice that a question has not.

    A missing choice is a feature of zeros, which no text has. A bias would move all choices alike, and say nothing.

    Dims: R questions, C choices, D hidden size.
    """

    def __init__(self, hidden_size: int, choices: int) -> None:
        """Make fresh weights.

        Args:
            hidden_size: D.
            choices: C.
        """
        super().__init__()
        self.choices = choices
        self.score = nn.Linear(hidden_size, 1, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """Turn features ``(R, C·D)`` into scores ``(R, C)``."""
        each = self.apart(features)
        return self.score(each).squeeze(-1).masked_fill(missing(each), -math.inf)

    def apart(self, features: Tensor) -> Tensor:
        """Return the features of each choice ``(R, C, D)``."""
        return features.reshape(len(features), self.choices, -1)


def missing(each: Tensor) -> Tensor:
    """Say which choices ``(R, C, D)`` a question has not: ``(R, C)``."""
    return (each == 0).all(-1)


def beside_the_others(each: Tensor) -> Tensor:
    """Return how the choices ``(R, C, D)`` that are there differ from the mean of their question: ``(N, D)``.

    What all choices of a question share cancels out in their probabilities.
    """
    there = ~missing(each)
    mean = each.sum(1, keepdim=True) / there.sum(1).reshape(-1, 1, 1)
    return (each - mean)[there]
