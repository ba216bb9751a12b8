"""How far neighbours that the model reads count in its answer, chosen on validation.

    p(y|x) = g·p(y|x, neighbours) + (1-g)·p(y|x)

p(y|x) is the same model's answer without neighbours, and g = 0 is among the choices: the shipped answer is no worse on
validation than that without retrieval, by the merit that every choice there is made by.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from peft_rag.errors import ConfigError
from peft_rag.fusion.mixing import mix

if TYPE_CHECKING:
    from torch import Tensor

    from peft_rag.fusion.base import Shown
    from peft_rag.tasks.base import Example, Task

GATES = (0.0, 1.0, 0.25, 0.5, 0.75)
"""The choices of g, cheapest first: 0 retrieves nothing, 1 reads an input once, a mixture reads it twice."""

_ROUNDING = 1e-6
"""Nats of mean log-likelihood below which choices count as equal: where nothing is found, only rounding differs."""


@dataclass(frozen=True)
class Fallback:
    """What was chosen, and what each answer scored on validation by the task's main metric.

    Attributes:
        gate: g.
        metric: name of the main metric.
        without: its value for g = 0.
        with_neighbours: its value for g = 1.
        chosen: its value for g.
    """

    gate: float
    metric: str
    without: float
    with_neighbours: float
    chosen: float

    def __str__(self) -> str:
        """Say it in a line, in percent."""
        scores = f"{100 * self.without:.1f} without, {100 * self.with_neighbours:.1f} with"
        mixed = f", {100 * self.chosen:.1f} mixed" if 0 < self.gate < 1 else ""
        return f"retrieval counts {self.gate:.0%} (validation {self.metric} {scores}{mixed})"


def choose_gate(
    alone: Tensor,
    fused: Tensor,
    task: Task,
    targets: Tensor,
    examples: Sequence[Example] = (),
    *,
    gates: Sequence[float] = GATES,
) -> Fallback:
    """Choose g by the task's merit on validation; of equals the cheapest: 0, then 1, then the least mixture.

    Args:
        alone: log p(y|x) in nats, ``(N, …)``.
        fused: log p(y|x, neighbours) in nats, of the same shape.
        task: whose merit decides: the main metric, then the mean log-likelihood.
        targets: of the N examples.
        examples: these.
        gates: that may be chosen, 0 first and 1 second.
    """
    merits = {gate: task.merit(mix(alone, fused, gate), targets, examples) for gate in gates}
    best = gates[0]
    for gate in gates[1:]:
        score, likelihood = merits[best]
        if merits[gate] > (score, likelihood + _ROUNDING):
            best = gate
    return Fallback(best, task.main_metric, merits[0.0][0], merits[1.0][0], merits[best][0])


def scaled(rows: Sequence[Sequence[Shown]], gate: float) -> list[list[Shown]]:
    """Return shown neighbours with what they count in the mixture: g times their weight."""
    return [[replace(one, weight=gate * one.weight) for one in row] for row in rows]


def check_gate(gate: float) -> float:
    """Return g, or raise `ConfigError` where it is no share."""
    if not isinstance(gate, (int, float)) or not 0 <= gate <= 1:
        raise ConfigError(f"the gate of a fusion is {gate!r}; it is a share from 0 (no retrieval) to 1.")
    return float(gate)
