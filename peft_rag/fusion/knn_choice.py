"""By which k, T and λ neighbours vote, chosen on validation.

The usual setting (k 16, T 0.05, λ 0.3) was best over 5 to 20 training examples a class of banking77; a tenth of so few
is too little to choose among hundreds of settings, whose best by chance alone answered 0.3 to 1.0 points less of the
2,000 examples held back.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from peft_rag.decisions import Decisions
from peft_rag.fusion.mixing import mix
from peft_rag.tasks.base import LEAST_LOG_PROB

if TYPE_CHECKING:
    from torch import Tensor

    from peft_rag.tasks.base import Example, Task

KS = (1, 2, 4, 8, 16, 32, 64)
_TEMPERATURES = (0.01, 0.02, 0.05, 0.1, 0.2)
_WEIGHTS = tuple(step / 20 for step in range(21))
_USUAL_K, _USUAL_TEMPERATURE, _USUAL_WEIGHT = 16, 0.05, 0.3


class Setting(NamedTuple):
    """How neighbours vote.

    Attributes:
        k: neighbours that vote.
        temperature: T of π = softmax(s/T).
        weight: λ, how much their vote counts.
    """

    k: int
    temperature: float
    weight: float


@dataclass(frozen=True)
class Settings:
    """The settings that may be chosen, λ counting fastest, and the usual one among them.

    Attributes:
        ks: numbers of neighbours.
        temperatures: of their shares.
        weights: of their vote.
        usual: what is taken unless validation speaks against it.
    """

    ks: Sequence[int]
    temperatures: Sequence[float]
    weights: Sequence[float]
    usual: Setting

    @classmethod
    def open(cls, k: int | None, temperature: float | None, weight: float | None, known: int) -> Settings:
        """Return what may be chosen where None leaves it open.

        Args:
            k: K, if given.
            temperature: T, if given.
            weight: λ, if given.
            known: documents there are, or decisions on them.
        """
        ks = [k] if k else [one for one in KS if one <= known]
        usual = Setting(
            k or max(one for one in ks if one <= _USUAL_K),
            temperature or _USUAL_TEMPERATURE,
            _USUAL_WEIGHT if weight is None else weight,
        )
        temperatures = [temperature] if temperature else _TEMPERATURES
        return cls(ks, temperatures, [weight] if weight is not None else _WEIGHTS, usual)


def choose_setting(
    settings: Settings,
    own: Tensor,
    votes: Callable[[int, float], Tensor],
    task: Task,
    targets: Tensor,
    examples: Sequence[Example],
) -> Setting:
    """Choose k, T and λ: the usual setting, unless another is convincingly better, or the usual one does harm.

    The best by the task's merit (main metric, and among equals mean log-likelihood) is taken where it is right about
    more decisions than the usual one by over two standard errors of the difference, decisions on one example taken
    together. Where it is not, but the usual one is worse than no neighbours at all, λ alone is chosen, 0 among its
    values, at the usual k and T: with few examples the best of hundreds is luck, the best of twenty that differ in one
    number is nearly none.

    A log-probability counts as `LEAST_LOG_PROB` at least: where λ = 1 is given, a target that no neighbour votes for
    must not make every choice equally bad.

    Args:
        settings: what may be chosen.
        own: log p_model in nats, ``(R, …)``.
        votes: returns log p_kNN of the same shape, given k and T.
        task: whose merit decides.
        targets: of the R decisions.
        examples: these were on.
    """

    def mixed(voted: Tensor, weight: float) -> Tensor:
        return mix(own, voted, weight).clamp(min=LEAST_LOG_PROB)

    merits: dict[Setting, tuple[float, float]] = {}
    for k, temperature in itertools.product(settings.ks, settings.temperatures):
        voted = votes(k, temperature)
        for weight in settings.weights:
            merits[Setting(k, temperature, weight)] = task.merit(mixed(voted, weight), targets, examples)
    usual = settings.usual
    best = max(merits, key=lambda setting: merits[setting])
    right, by_habit = (task.right(mixed(votes(one.k, one.temperature), one.weight), targets) for one in (best, usual))
    gains = right - by_habit
    if not task.one_decision:  # decisions on one example are right or wrong together
        gains = Decisions.on(task, examples).sums(gains)
    if convincing(gains):
        return best
    without = usual._replace(weight=0.0)
    if without in merits and merits[usual] < merits[without]:
        return max((usual._replace(weight=weight) for weight in settings.weights), key=lambda one: merits[one])
    return usual


def convincing(gains: Tensor) -> bool:
    """Say whether a gain on each of N examples ``(N,)`` is above 0 in the mean by over two standard errors."""
    gains = gains.double()
    return len(gains) > 1 and float(gains.mean()) > 2 * float(gains.std()) / math.sqrt(len(gains))
