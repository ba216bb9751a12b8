"""What a search found, as a program reads it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from peft_rag.benchmark.work import command_of
from peft_rag.config import RunConfig
from peft_rag.recommendation.candidates import Survey
from peft_rag.recommendation.choice import Choice, Standing
from peft_rag.recommendation.options import SearchOptions
from peft_rag.recommendation.search import Found

FORMAT = 1


@dataclass(frozen=True)
class Report:
    """Everything there is to tell.

    Attributes:
        options: of the search.
        surveyed: who took part and who did not.
        found: what the rungs gave.
        choice: what is recommended.
        final: the run that made the artefact, its output as asked for.
        metrics: what that run measured.
        metric: that validation was scored by.
        validation: number of examples.
        seconds: everything took.
    """

    options: SearchOptions
    surveyed: Survey
    found: Found
    choice: Choice
    final: RunConfig
    metrics: Mapping[str, Any]
    metric: str
    validation: int
    seconds: float

    @property
    def command(self) -> str:
        """The command that repeats the final run."""
        return command_of(flags_of(self.final), self.final.output)

    def content(self, why: Sequence[str]) -> dict[str, Any]:
        """Return the content of ``recommendation.json``.

        Args:
            why: the reasons in sentences.
        """
        candidate = self.choice.standing.candidate
        return {
            "format": FORMAT,
            "recommended": {
                "method": candidate.method,
                "settings": candidate.settings,
                "fusion": self.choice.fusion,
                "steps": self.found.full_steps,
                "artefact_bytes": self.metrics["artefact_bytes"],
                "validation": {self.metric: self.choice.answered.score, "loss": self.choice.answered.loss},
                "test": self.metrics["test"],
            },
            "why": list(why),
            "command": self.command,
            "metric": self.metric,
            "validation_examples": self.validation,
            "test_examples": self.metrics["test_examples"] if self.final.test else 0,
            "search": asdict(self.options),
            "rungs": [asdict(rung) for rung in self.found.rungs],
            "notes": list(self.found.notes),
            "candidates": [_about(standing) for standing in ranked(self.found)],
            "left_out": [asdict(one) for one in self.surveyed.dropped],
            "seconds": self.seconds,
            "versions": self.metrics["versions"],
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }


def flags_of(config: RunConfig) -> dict[str, Any]:
    """Return what a command line must say of a run, output apart: what differs from the defaults, and the parts."""
    named = {
        entry.name: getattr(config, entry.name)
        for entry in fields(RunConfig)
        if entry.name not in ("output", "resume", "options", "training")
        and (entry.name in ("method", "fusion") or getattr(config, entry.name) != entry.default)
    }
    parts = {f"{part}.{name}": value for part, given in config.options.items() for name, value in given.items()}
    return {**named, **parts, **config.training}


def ranked(found: Found) -> list[Standing]:
    """Return all candidates that were trained, those that came furthest first."""
    tried = [standing for standing in found.standings if standing.trials]
    return sorted(tried, key=lambda one: (len(one.trials), one.alive, one.merit if one.alive else ()), reverse=True)


def _about(standing: Standing) -> dict[str, Any]:
    """Say of a candidate how far it came, and what each of its trials gave."""
    candidate, last = standing.candidate, standing.last
    return {
        "method": candidate.method,
        "settings": candidate.settings,
        "fusions": list(candidate.fusions),
        "artefact_bytes": candidate.size,
        "rung": len(standing.trials),
        "status": last.status,
        "error": last.error,
        "seconds": sum(trial.seconds for trial in standing.trials),
        "trials": [
            {
                "steps": trial.steps,
                "seconds": trial.seconds,
                "validation": {name: {"score": one.score, "loss": one.loss} for name, one in trial.answers.items()},
            }
            for trial in standing.trials
        ],
    }
