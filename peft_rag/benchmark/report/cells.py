"""The files of a benchmark's cells, read into types."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from peft_rag.errors import ArtefactError
from peft_rag.evaluation.statistics import MEAN, STATISTICS, FloatArray, Statistic

FORMAT = 1
DONE, FAILED, DIVERGED = "done", "failed", "diverged"
RETRIEVED, OFF, RETRIEVAL_ALONE = "retrieved", "off", "retrieval_alone"


@dataclass(frozen=True, order=True)
class Setting:
    """What methods are compared within.

    Attributes:
        dataset: name of the data set.
        shots: training examples per class; 0 for all.
        backbone: the frozen transformer.
    """

    dataset: str
    shots: int
    backbone: str


@dataclass(frozen=True)
class Arm:
    """The answers of one model to the test split, seen with one kind of neighbours.

    Attributes:
        scores: each metric by name, in [0, 1] as a rule.
        tallies: what each example adds to the main metric, ``(N, M)``.
        statistic: which makes that metric of them.
    """

    scores: Mapping[str, float]
    tallies: FloatArray
    statistic: Statistic

    @property
    def value(self) -> float:
        """The statistic of all examples."""
        return float(self.statistic.of(self.tallies.mean(axis=0)))


@dataclass(frozen=True)
class Audit:
    """Test examples that stand in the training data or the corpus.

    Attributes:
        threshold: least similarity of near duplicates.
        exact: positions of those that stand there word for word.
        near: positions of those that stand there nearly.
    """

    threshold: float
    exact: frozenset[int]
    near: frozenset[int]


@dataclass(frozen=True)
class Cell:
    """One run of a benchmark, as its file says.

    Attributes:
        path: of the file.
        suite: it belongs to.
        setting_fingerprint: of what in the suite decides every cell of its setting; empty where it is not known.
        setting: data set, shots and backbone.
        method, fusion, seed: the row and its repetition.
        external: whether the run is of another library.
        covers: labels of fusions whose rows this cell's arm without retrieval stands for.
        status: ``done``, ``failed`` or ``diverged``.
        error: why it is not done, on one line.
        command: repeats the run.
        commit, dirty, machine, versions, sources, started, seconds: what made it.
        main_metric: name of the score that rows are ranked by.
        plain_scores: names of scores that are no shares, and not written in percent.
        written: how many test examples the model wrote texts to; 0 where it writes none.
        targets: the right answers, ``(N,)``.
        arms: by name; none unless it is done.
        audit: None where it was not taken.
        trials: choices of settings tried on validation.
        chosen: the settings taken.
        costs: by name, as measured.
    """

    path: Path
    suite: str
    setting_fingerprint: str
    setting: Setting
    method: str
    fusion: str
    seed: int
    external: bool
    covers: tuple[str, ...]
    status: str
    error: str
    command: str
    commit: str
    dirty: bool
    machine: Mapping[str, Any]
    versions: Mapping[str, str]
    sources: Mapping[str, str]
    started: str
    seconds: float
    main_metric: str
    plain_scores: frozenset[str]
    written: int
    targets: tuple[Any, ...]
    arms: Mapping[str, Arm]
    audit: Audit | None
    trials: int
    chosen: Mapping[str, Any]
    costs: Mapping[str, Any]

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def done(self) -> bool:
        return self.status == DONE

    @property
    def statistic(self) -> Statistic:
        """What makes the main metric of its arms' tallies."""
        return next((arm.statistic for arm in self.arms.values()), MEAN)

    @property
    def own_arm(self) -> str:
        """The arm that the cell was trained for."""
        return RETRIEVED if RETRIEVED in self.arms else OFF


def read_cell(path: Path) -> Cell | None:
    """Read the file of one cell; None where a JSON file is of something else.

    Raises:
        ArtefactError: it cannot be read; the message names what is wrong with it.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtefactError(f"'{path}' cannot be read ({error}). Remove it, and run its cell again.") from None
    if not isinstance(content, dict) or "cell" not in content:
        return None
    if content.get("format") != FORMAT:
        raise ArtefactError(f"'{path}' is of format {content.get('format')}, not {FORMAT}. Run its cell again.")
    try:
        return _cell(path, content)
    except KeyError as error:
        raise ArtefactError(f"'{path}' lacks the field {error}. Remove it, and run its cell again.") from None
    except (TypeError, ValueError, AttributeError) as error:
        raise ArtefactError(f"'{path}' holds a value of the wrong kind ({error}). Run its cell again.") from None


def _cell(path: Path, content: Mapping[str, Any]) -> Cell:
    key, status = content["cell"], content["status"]
    if status not in (DONE, FAILED, DIVERGED):
        raise ValueError(f"status '{status}'")
    targets = tuple(_answer(one) for one in content["targets"]) if status == DONE else ()
    statistic = STATISTICS.get(content.get("statistic", MEAN.name))
    if statistic is None:
        raise ValueError(f"statistic '{content['statistic']}'")
    given = content["arms"] if status == DONE else {}
    arms = {name: _arm(arm, targets, statistic) for name, arm in given.items()}
    tuning = content.get("tuning") or {}
    return Cell(
        path=path,
        suite=content["suite"],
        setting_fingerprint=content.get("setting_fingerprint", ""),
        setting=Setting(key["dataset"], int(key["shots"]), key["backbone"]),
        method=key["method"],
        fusion=key["fusion"],
        seed=int(key["seed"]),
        external=bool(key.get("external", False)),
        covers=tuple(content.get("covers", ())),
        status=status,
        error=content.get("error", ""),
        command=content.get("command", ""),
        commit=content.get("commit", ""),
        dirty=bool(content.get("dirty", False)),
        machine=content.get("machine", {}),
        versions=content.get("versions", {}),
        sources=content.get("sources", {}),
        started=content.get("started", ""),
        seconds=float(content.get("seconds", 0.0)),
        main_metric=content.get("main_metric", "accuracy"),
        targets=targets,
        plain_scores=frozenset(content.get("plain_scores", ())),
        written=int(content.get("written", 0)),
        arms=arms,
        audit=_audit(content.get("audit"), len(targets)) if status == DONE else None,
        trials=len(tuning.get("trials", ())),
        chosen=tuning.get("chosen") or {},
        costs=content.get("costs") or {},
    )


def _arm(content: Mapping[str, Any], targets: tuple[Any, ...], statistic: Statistic) -> Arm:
    """Read an arm; where it holds no ``tallies``, how right each answer is says so, or whether it is the target."""
    if "tallies" in content:
        tallies = np.asarray(content["tallies"], dtype=np.float64)
    elif "example_scores" in content:
        tallies = np.asarray(content["example_scores"], dtype=np.float64)[:, None]
    else:
        pairs = zip(map(_answer, content["predictions"]), targets, strict=True)
        tallies = np.array([[one == target] for one, target in pairs], dtype=np.float64)
    if tallies.shape != (len(targets), len(statistic.columns)) or not len(tallies):
        raise ValueError(f"answers of shape {tallies.shape} to {len(targets)} examples under '{statistic.name}'")
    return Arm({name: float(value) for name, value in content["scores"].items()}, tallies, statistic)


def _answer(value: Any) -> Any:
    """Make answers comparable: several classes are equal in whatever order."""
    return frozenset(value) if isinstance(value, list) else value


def _audit(content: Mapping[str, Any] | None, examples: int) -> Audit | None:
    if not content:
        return None
    exact, near = frozenset(content["exact"]), frozenset(content["near"])
    if not all(0 <= place < examples for place in exact | near):
        raise ValueError(f"the audit names an example beyond the {examples} that there are")
    return Audit(float(content["threshold"]), exact, near)
