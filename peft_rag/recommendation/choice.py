"""Which finalist, with which fusion: the simplest and smallest that validation cannot tell from the best."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from peft_rag.benchmark.results import DONE
from peft_rag.evaluation.comparison import BETTER, SAME, Comparison, as_family, compare
from peft_rag.evaluation.mcnemar import mcnemar
from peft_rag.evaluation.statistics import MEAN, STATISTICS
from peft_rag.evaluation.tallies import Tallies, difference
from peft_rag.evaluation.two_level import bootstrap_rows
from peft_rag.recommendation.candidates import Candidate
from peft_rag.recommendation.trial import Answered, Trial

LEAST_DISAGREEMENTS = 5
"""Fewest examples of which one model alone must get all right for McNemar's mid-p to fall below 5%: 2^-5 = 3.1%."""


@dataclass(frozen=True)
class Standing:
    """A candidate with the trials it has had, one a rung."""

    candidate: Candidate
    trials: tuple[Trial, ...] = ()

    @property
    def last(self) -> Trial:
        return self.trials[-1]

    @property
    def alive(self) -> bool:
        """Whether its last training ended well."""
        return bool(self.trials) and self.last.status == DONE

    @property
    def merit(self) -> tuple[float, float, int]:
        """What it is ranked by within a rung: score, then loss, then bytes, the fewer the better."""
        return (*self.last.best, -self.candidate.size)


@dataclass(frozen=True)
class Doubt:
    """What a fusion gains on validation.

    Attributes:
        first: the fusion.
        second: the simplest fusion of the same candidate.
        comparison: of the first with the second.
    """

    first: str
    second: str
    comparison: Comparison


@dataclass(frozen=True)
class Rival:
    """A finalist that is smaller than the one that scores best.

    Attributes:
        second: the smaller one.
        comparison: of the best with it.
    """

    second: Standing
    comparison: Comparison


@dataclass(frozen=True)
class Choice:
    """What is recommended.

    Attributes:
        standing: the finalist.
        fusion: by name.
        by_fusion: its richer fusions against its simplest.
        best: the finalist that scores best, which may be another.
        rivals: the best against each smaller finalist.
    """

    standing: Standing
    fusion: str
    by_fusion: tuple[Doubt, ...]
    best: Standing
    rivals: tuple[Rival, ...]

    @property
    def answered(self) -> Answered:
        return self.standing.last.answers[self.fusion]


def survivors(standings: Sequence[Standing], count: int) -> list[Standing]:
    """Return the best of a rung; what failed or diverged does not go on."""
    alive = [standing for standing in standings if standing.alive]
    return sorted(alive, key=lambda standing: standing.merit, reverse=True)[:count]


def choose(finalists: Sequence[Standing]) -> Choice:
    """Choose among candidates that were trained for the same steps.

    Of each, the simplest fusion is taken unless another is better beyond the noise. Of the candidates, the best is
    taken unless it is no better, beyond the noise, than one whose artefact takes fewer bytes; the smallest of those.

    Raises:
        ValueError: none of them ended well.
    """
    alive = [standing for standing in finalists if standing.alive]
    if not alive:
        raise ValueError("there is no finalist whose training ended well")
    fused = {id(standing): _fusion_of(standing) for standing in alive}

    def answered(standing: Standing) -> Answered:
        return standing.last.answers[fused[id(standing)][0]]

    def merit(standing: Standing) -> tuple[float, float, int]:
        return answered(standing).score, -answered(standing).loss, -standing.candidate.size

    best = max(alive, key=merit)
    smaller = [one for one in alive if one.candidate.size < best.candidate.size]
    comparisons = as_family([against(answered(best), answered(one)) for one in smaller])
    alike = [one for one, found in zip(smaller, comparisons, strict=True) if found.verdict == SAME]
    taken = min(alike, key=lambda one: (one.candidate.size, [-value for value in merit(one)]), default=best)
    name, by_fusion = fused[id(taken)]
    rivals = [Rival(one, found) for one, found in zip(smaller, comparisons, strict=True)]
    return Choice(taken, name, by_fusion, best, tuple(rivals))


def against(first: Answered, second: Answered) -> Comparison:
    """Compare two models on the same validation examples.

    The difference is of the main metric, with its interval by bootstrap over examples; p is McNemar's mid-p, which
    holds its level on few examples too, or the bootstrap's where answers are not simply right or wrong.
    """
    one, other = _tallies(first), _tallies(second)
    gap = difference(one, other)
    found = compare(gap, bootstrap_rows([gap])[0])
    pair = np.stack([one.values, other.values])
    if one.statistic is MEAN and np.isin(pair, (0.0, 1.0)).all():
        p = mcnemar(one.scores[0] == 1.0, other.scores[0] == 1.0).mid_p
        found = replace(found, p=p, adjusted=p)
    return found


def _tallies(answered: Answered) -> Tallies:
    return Tallies(np.array([answered.tallies], dtype=np.float64), STATISTICS[answered.statistic])


def _fusion_of(standing: Standing) -> tuple[str, tuple[Doubt, ...]]:
    """Return the fusion of a finalist, and what it was compared with."""
    simplest, *richer = standing.candidate.fusions
    answers = standing.last.answers
    comparisons = as_family([against(answers[name], answers[simplest]) for name in richer])
    doubts = tuple(Doubt(name, simplest, found) for name, found in zip(richer, comparisons, strict=True))
    better = [doubt.first for doubt in doubts if doubt.comparison.verdict == BETTER]
    return max(better, key=lambda name: answers[name].score, default=simplest), doubts
