"""The search itself: rung after rung, within the time there is, and on again where it stopped."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from peft_rag.benchmark.progress import in_words
from peft_rag.benchmark.results import DONE
from peft_rag.config import RunConfig
from peft_rag.data import Splits
from peft_rag.errors import ConfigError, TrainingError
from peft_rag.recommendation.candidates import LOOKS, Candidate, Survey, looks_within, with_fusion
from peft_rag.recommendation.choice import Standing, survivors
from peft_rag.recommendation.options import SearchOptions
from peft_rag.recommendation.schedule import Pace, Rung, fit, halving, shrink
from peft_rag.recommendation.store import Store
from peft_rag.recommendation.trial import Trial, Trials

Say = Callable[[str], None]

_MINUTE = 60.0
_MEASURED = 2
_TEST_PASSES = 4
"""How often a final run reads its test split at most: before and after training, alone, and for its neighbours."""


@dataclass
class Clock:
    """Wall-clock time since the command began, and how much of it there may be.

    Attributes:
        seconds: that are allowed; infinitely many where no budget is given.
        begun: of the monotonic clock.
    """

    seconds: float = float("inf")
    begun: float = field(default_factory=time.monotonic)

    @property
    def passed(self) -> float:
        return time.monotonic() - self.begun

    @property
    def left(self) -> float:
        return self.seconds - self.passed


@dataclass(frozen=True)
class Found:
    """What a search found.

    Attributes:
        standings: every candidate with the trials it had.
        finalists: those of the last rung that took place.
        rungs: as they took place.
        full_steps: of the final run.
        notes: what was cut short, in words.
    """

    standings: tuple[Standing, ...]
    finalists: tuple[Standing, ...]
    rungs: tuple[Rung, ...]
    full_steps: int
    notes: tuple[str, ...]


class Search:
    """Trains candidates by successive halving."""

    def __init__(self, survey: Survey, options: SearchOptions, trials: Trials, store: Store, clock: Clock, say: Say):
        self.survey, self.options = survey, options
        self.trials, self.store, self.clock, self.say = trials, store, clock, say
        self.standings: dict[int, Standing] = {}
        self.notes: list[str] = []
        self.pace: Pace | None = None

    def run(self, full_steps: int, splits: Splits) -> Found:
        """Run the rungs.

        Args:
            full_steps: of the final run, if time allows.
            splits: the data; the sizes of test and training data tell what the final run does more than a trial.

        Raises:
            ConfigError: the time does not suffice for one trial and the final run.
            TrainingError: no candidate's training ended well.
        """
        candidates, rungs = self._plan(full_steps, splits)
        wanted = rungs[-1].steps
        if wanted < full_steps:
            self._note(f"the time allows {wanted} steps for the final run instead of {full_steps}")
        standings = [Standing(candidate) for candidate in candidates]
        self.standings = {id(candidate): one for candidate, one in zip(candidates, standings, strict=True)}
        finalists: list[Standing] = []
        took_place: list[Rung] = []
        left = list(rungs)
        while left:
            rung = left.pop(0)
            entrants = survivors(finalists, rung.candidates) if finalists else standings
            ended = self._rung(entrants, rung, left, len(took_place) + 1)
            if any(one.alive for one in ended):
                finalists = ended
                took_place.append(Rung(len(ended), rung.steps))
            elif not finalists:
                raise TrainingError(_nobody(ended))
            left = self._refitted(left, rung.steps)
        steps = self._final_steps(took_place[-1].steps, wanted)
        return Found(tuple(self.standings.values()), tuple(finalists), tuple(took_place), steps, tuple(self.notes))

    def _plan(self, full_steps: int, splits: Splits) -> tuple[tuple[Candidate, ...], list[Rung]]:
        widths = self.survey.by_width
        if self.clock.seconds == float("inf"):
            candidates, rungs = widths[0], halving(len(widths[0]), full_steps, self.options.eta)
        elif (kept := self.store.read_plan(widths[0], full_steps)) is not None:
            count, rungs, self.pace = kept
            candidates = next(width for width in widths if len(width) == count)
        else:
            self.pace = pace = self._measure(splits)
            self._refuse_too_short(pace, len(splits.test))
            place, rungs = fit([len(width) for width in widths], full_steps, self.options.eta, pace, self.clock.left)
            candidates = widths[place]
            self.store.write_plan(widths[0], full_steps, len(candidates), rungs, pace)
        if len(candidates) < len(widths[0]):
            self._note(f"the time allows {len(candidates)} candidates instead of {len(widths[0])}")
        self.say(
            f"search: {_rounds(rungs)}; the best of each rung go on, and the winner is trained once more and tested"
        )
        return candidates, rungs

    def _refuse_too_short(self, pace: Pace, tested: int) -> None:
        least = pace.of([Rung(1, 1)], 1)
        if self.clock.left < least:
            enough = math.ceil(10 * (least + self.clock.passed) / _MINUTE) / 10
            raise ConfigError(
                f"--budget-minutes {self.options.budget_minutes:g} is too short: one trial and the final run, with "
                f"{tested:,} test texts, and what comes before them take about {enough:g} minutes here. Give more."
            )

    def _measure(self, splits: Splits) -> Pace:
        """Time one short run, after what is loaded once."""
        import sklearn.linear_model  # noqa: F401 - what the first run would load is no part of its pace

        import peft_rag.training  # noqa: F401

        candidate = next((one for one in self.survey.by_width[-1] if one.settings), self.survey.by_width[-1][0])
        trial = self.trials.run(candidate, _MEASURED)
        if trial.status != DONE:  # what it took says enough, and the rungs will say what is wrong
            return Pace(trial.seconds, trial.seconds)
        pace = pace_of(trial, self.trials.base, len(self.survey.prepared.validation))
        self.say(f"pace: {pace.step:.2g} s a step and {pace.run:.2g} s a run beside, measured with {candidate.method}")
        texts = _TEST_PASSES * len(splits.test) + len(splits.train)
        return replace(pace, test=texts * trial.pass_seconds)

    def _rung(self, entrants: Sequence[Standing], rung: Rung, later: Sequence[Rung], number: int) -> list[Standing]:
        """Train each entrant, the most promising first, as long as there is time; return those that were trained."""
        self.say("")
        self.say(f"rung {number}: {len(entrants)} candidates, {rung.steps} steps each")
        ended: list[Standing] = []
        for place, standing in enumerate(entrants, start=1):
            if ended and self._time_is_up(rung.steps):
                self._note(
                    f"time ran out in rung {number}: {len(entrants) - len(ended)} of its {len(entrants)} candidates, "
                    "the least promising, were not trained in it"
                )
                break
            trial = self._trial(standing.candidate, rung.steps)
            standing = replace(standing, trials=(*standing.trials, trial))
            self.standings[id(standing.candidate)] = standing
            ended.append(standing)
            self._learn(trial)
            remaining = [Rung(len(entrants) - place, rung.steps), *later]
            self.say(
                f"[{place}/{len(entrants)}] {standing.candidate.label}: {_outcome(standing)}{self._eta(remaining)}"
            )
        return ended

    def _trial(self, candidate: Candidate, steps: int) -> Trial:
        kept = self.store.read(candidate, steps)
        if kept is not None:
            return kept
        trial = self.trials.run(candidate, steps)
        self.store.write(candidate, trial)
        return trial

    def _learn(self, trial: Trial) -> None:
        """Keep the pace of the latest runs, a moving average over about five."""
        if trial.status != DONE:
            return
        new = pace_of(trial, self.trials.base, len(self.survey.prepared.validation))
        old = self.pace or new
        self.pace = Pace(0.8 * old.run + 0.2 * new.run, 0.8 * old.step + 0.2 * new.step, old.test)

    def _time_is_up(self, steps: int) -> bool:
        return self.pace is not None and self.pace.of([Rung(1, steps)], steps) > self.clock.left

    def _refitted(self, left: list[Rung], done_steps: int) -> list[Rung]:
        if self.pace is None or not left:
            return left
        shorter = shrink(left, self.options.eta, self.pace, self.clock.left, done_steps)
        if shorter != left:
            self._note(f"runs take longer than thought; what is left is cut to {_rounds(shorter) or 'the final run'}")
        return shorter

    def _final_steps(self, judged: int, wanted: int) -> int:
        """Return the steps of the final run: as many as there is time for, and no fewer than the choice rests on."""
        if self.pace is None or self.clock.seconds == float("inf"):
            return wanted
        steps = self.pace.affordable([], self.options.eta, self.clock.left)
        if steps < judged:
            self._note(
                f"the final run takes the {judged} steps that the choice rests on, beyond the time that was left"
            )
        return min(max(steps, judged), wanted)

    def _eta(self, remaining: Sequence[Rung]) -> str:
        if self.pace is None:
            return ""
        return f"; about {in_words(self.pace.of(remaining, max(rung.steps for rung in remaining)))} left"

    def _note(self, words: str) -> None:
        self.notes.append(words)
        self.say(f"note: {words}")


def pace_of(trial: Trial, base: RunConfig, texts: int) -> Pace:
    """Take a training apart: looks at validation are no part of a step, for a long run has as many as a short one.

    Args:
        trial: that ended well.
        base: the run it was made from.
        texts: of validation, whose pass was timed by itself; steps keep a tenth of the time whatever that says.
    """
    look = trial.pass_seconds * texts
    seen = looks_within(base, trial.steps)
    stepping = max(trial.train_seconds - seen * look, 0.1 * trial.train_seconds)
    beside = trial.seconds - trial.train_seconds + (LOOKS * look if seen else 0.0)
    return Pace(beside, stepping / trial.steps)


def _rounds(rungs: Sequence[Rung]) -> str:
    return ", then ".join(f"{rung.candidates} candidates for {rung.steps} steps" for rung in rungs)


def _outcome(standing: Standing) -> str:
    trial = standing.last
    if trial.status != DONE:
        return f"{trial.status} ({trial.error})"
    scores = ", ".join(
        f"{100 * trial.answers[name].score:.1f} {with_fusion(name)}" for name in standing.candidate.fusions
    )
    return f"{scores} in {trial.seconds:.0f} s"


def _nobody(ended: Sequence[Standing]) -> str:
    first = ended[0]
    return (
        f"none of {len(ended)} candidates could be trained; the first, {first.candidate.label}, {first.last.status}: "
        f"{first.last.error}"
    )
