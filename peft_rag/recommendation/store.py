"""Trials as files, so that a search that was cut off goes on where it stopped."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple
from pathlib import Path
from typing import Any

from peft_rag.benchmark.results import FAILED, read_result, write_result
from peft_rag.benchmark.sources import content_hashes
from peft_rag.benchmark.suite import DataSet
from peft_rag.config import RunConfig
from peft_rag.contents import held_by
from peft_rag.errors import ArtefactError
from peft_rag.files import sha256_of_json, write_json
from peft_rag.recommendation.candidates import Candidate
from peft_rag.recommendation.schedule import Pace, Rung
from peft_rag.recommendation.trial import Answered, Trial

_PLAN = "plan.json"


class Store:
    """The trials of a search, one file each, named by all that decides it: settings, steps, fusions and data."""

    def __init__(self, folder: Path, base: RunConfig) -> None:
        self.folder, self.base = folder, base
        sources = {name: getattr(base, name) for name in ("train", "validation", "corpus")}
        self.data = content_hashes(DataSet(name="mine", test="", **sources)) | held_by(base.to_dict())

    def read(self, candidate: Candidate, steps: int) -> Trial | None:
        """Return a trial that was finished before; None where there is none, or it failed, for lack of memory maybe.

        Raises:
            ArtefactError: its file is damaged.
        """
        path = self._path(candidate, steps)
        held = read_result(path)
        if held is None or held["status"] == FAILED:
            return None
        try:
            answers = {name: _answered(given) for name, given in held.pop("answers").items()}
            return Trial(**held, answers=answers)
        except (KeyError, TypeError, AttributeError) as error:
            raise ArtefactError(f"'{path}' cannot be read ({error}). Remove it, and its trial is run again.") from None

    def write(self, candidate: Candidate, trial: Trial) -> None:
        """Keep a trial, whole or not at all."""
        write_result(self._path(candidate, trial.steps), asdict(trial))

    def read_plan(self, candidates: Sequence[Candidate], full_steps: int) -> tuple[int, list[Rung], Pace] | None:
        """Return the plan of the search that was cut off, if it was for the same candidates.

        Returns:
            How many candidates took part, their rungs, and the pace that was measured.
        """
        path = self.folder / _PLAN
        if not path.is_file():
            return None
        try:
            held = json.loads(path.read_text(encoding="utf-8"))
            if held["for"] != self._key_of_all(candidates, full_steps):
                return None
            return held["candidates"], [Rung(*rung) for rung in held["rungs"]], Pace(*held["pace"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ArtefactError(f"'{path}' cannot be read ({error}). Remove it, and time is planned anew.") from None

    def write_plan(
        self, candidates: Sequence[Candidate], full_steps: int, count: int, rungs: Sequence[Rung], pace: Pace
    ) -> None:
        """Keep how a search was fitted to its time, so that trials of the same steps can be found again."""
        about = {
            "for": self._key_of_all(candidates, full_steps),
            "candidates": count,
            "rungs": [astuple(rung) for rung in rungs],
            "pace": astuple(pace),
        }
        write_json(self.folder / _PLAN, about)

    def _key_of_all(self, candidates: Sequence[Candidate], full_steps: int) -> list[str]:
        return [self._path(candidate, full_steps).stem for candidate in candidates]

    def _path(self, candidate: Candidate, steps: int) -> Path:
        run = candidate.config(self.base, steps).to_dict()
        decisive = {name: value for name, value in run.items() if name not in ("output", "resume", "test")}
        judged = {"run": decisive, "fusions": list(candidate.fusions), "data": self.data}
        key = sha256_of_json(judged).removeprefix("sha256:")
        return self.folder / f"{key[:32]}.json"


def _answered(given: Mapping[str, Any]) -> Answered:
    tallies = tuple(tuple(row) for row in given["tallies"])
    return Answered(given["score"], given["loss"], tallies, given["statistic"])
