"""A folder of cells as rows: which cells make a row, which seeds it lacks, and what must be said beside it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from peft_rag.benchmark.report.cells import DONE, OFF, RETRIEVAL_ALONE, Arm, Cell, Setting, read_cell
from peft_rag.errors import ArtefactError
from peft_rag.evaluation.tallies import Tallies

NONE = "none"
ALONE = "retrieval alone"
MISSING = "missing"
_TRAINED_ALIKE = "knn"


@dataclass(frozen=True)
class RowKey:
    """What a row is called in every data set.

    Attributes:
        method: of training; ``retrieval alone`` for neighbours without a model.
        fusion: how neighbours enter.
    """

    method: str
    fusion: str

    @property
    def label(self) -> str:
        """The method, and the fusion where there is one."""
        return self.method if self.fusion == NONE or self.method == ALONE else f"{self.method} + {self.fusion}"


@dataclass(frozen=True)
class Row:
    """One method with one fusion within one setting.

    Attributes:
        setting: data set, shots and backbone.
        key: method and fusion.
        cells: whose arm the row is, by seed.
        arms: names of these arms, by seed; none for cells that are not done.
        seeds: that the setting has in all.
    """

    setting: Setting
    key: RowKey
    cells: Mapping[int, Cell]
    arms: Mapping[int, str]
    seeds: tuple[int, ...]

    @property
    def label(self) -> str:
        return self.key.label

    @property
    def external(self) -> bool:
        return any(cell.external for cell in self.cells.values())

    @property
    def done(self) -> tuple[int, ...]:
        """Seeds with a result."""
        return tuple(seed for seed in self.seeds if seed in self.arms)

    @property
    def complete(self) -> bool:
        return self.done == self.seeds

    @property
    def failures(self) -> dict[str, int]:
        """How many seeds have no result, by ``failed``, ``diverged`` or ``missing``."""
        states = [self.cells[seed].status if seed in self.cells else MISSING for seed in self.seeds]
        return dict(Counter(state for state in states if state != DONE))

    @property
    def shortfall(self) -> str:
        """``2 of 3 seeds, 1 diverged``; empty where nothing is lacking."""
        if self.complete:
            return ""
        lacking = ", ".join(f"{count} {state}" for state, count in self.failures.items())
        return f"{len(self.done)} of {len(self.seeds)} seeds, {lacking}"

    def arm(self, seed: int) -> Arm:
        return self.cells[seed].arms[self.arms[seed]]

    def tallies(self, seeds: Iterable[int] | None = None) -> Tallies:
        """Return what the answers add up to, for some seeds or for all that are done."""
        return stacked([self.arm(seed) for seed in (self.done if seeds is None else seeds)])


def stacked(arms: Sequence[Arm]) -> Tallies:
    """Return the tallies of one arm of each seed."""
    return Tallies(np.stack([arm.tallies for arm in arms]), arms[0].statistic)


@dataclass(frozen=True)
class Results:
    """All cells of one suite.

    Attributes:
        suite: its name.
        folder: where they lie.
        cells: in the order of their names.
    """

    suite: str
    folder: Path
    cells: tuple[Cell, ...]

    @cached_property
    def settings(self) -> tuple[Setting, ...]:
        return tuple(sorted({cell.setting for cell in self.cells}))

    @cached_property
    def rows(self) -> tuple[Row, ...]:
        return tuple(row for setting in self.settings for row in _rows(self.within(setting), setting))

    @property
    def missing(self) -> list[str]:
        """Rows that other data sets have and one lacks, and seeds that a row lacks, as ``data set: row, seed``."""
        keys = dict.fromkeys(row.key for row in self.rows)
        found = []
        for setting in self.settings:
            rows = {row.key: row for row in self.rows if row.setting == setting}
            for key in keys:
                if key not in rows:
                    found.append(f"{self.label(setting)}: {key.label}, every seed")
                elif MISSING in rows[key].failures:
                    lacking = [str(seed) for seed in rows[key].seeds if seed not in rows[key].cells]
                    found.append(f"{self.label(setting)}: {key.label}, seed {', '.join(lacking)}")
        return found

    def within(self, setting: Setting) -> tuple[Cell, ...]:
        return tuple(cell for cell in self.cells if cell.setting == setting)

    def label(self, setting: Setting) -> str:
        """Name a setting; the backbone is left out where there is but one."""
        shots = f", {setting.shots} shots" if setting.shots else ""
        several = len({one.backbone for one in self.settings}) > 1
        return f"{setting.dataset}{shots}" + (f", {setting.backbone}" if several else "")


def read_results(folder: Path) -> list[Results]:
    """Read a folder of cells, or of folders of cells, into one result set a suite.

    Raises:
        ArtefactError: there is no cell, two files are of one cell, or two cells of a data set differ in the test split.
    """
    places = [folder, *sorted(path for path in folder.iterdir() if path.is_dir())] if folder.is_dir() else []
    found = []
    for place in places:
        cells = tuple(cell for path in sorted(place.glob("[!.]*.json")) if (cell := read_cell(path)) is not None)
        if cells:
            found.append(_checked(Results(cells[0].suite, place, cells)))
    if not found:
        raise ArtefactError(f"'{folder}' holds no results of a benchmark. Run peft-rag benchmark first.")
    return found


def _checked(results: Results) -> Results:
    seen: dict[tuple[object, ...], Cell] = {}
    first: dict[Setting, Cell] = {}
    for cell in results.cells:
        if cell.suite != results.suite:
            raise ArtefactError(
                f"'{results.folder}' holds cells of two suites, '{results.suite}' and '{cell.suite}' "
                f"({cell.path.name}). Give each a folder of its own."
            )
        key = (cell.setting, cell.method, cell.fusion, cell.seed)
        if key in seen:
            raise ArtefactError(f"{seen[key].path.name} and {cell.path.name} are of the same cell. Remove one.")
        seen[key] = cell
        if not cell.done:
            continue
        other = first.setdefault(cell.setting, cell)
        if other.main_metric != cell.main_metric or other.statistic is not cell.statistic:
            raise ArtefactError(
                f"{other.path.name} and {cell.path.name} are judged by different metrics ({other.main_metric} and "
                f"{cell.main_metric}, or counted otherwise). Run one of them again."
            )
        if other.targets != cell.targets:
            raise ArtefactError(
                f"{other.path.name} and {cell.path.name} were tested on different splits of "
                f"'{cell.setting.dataset}'. Run one of them again."
            )
    return results


def _retrieval_alone(cells: Iterable[Cell]) -> dict[int, tuple[Cell, str]]:
    """Take retrieval alone from one fusion, as others may retrieve otherwise: from the one with the most seeds."""
    found: dict[str, dict[int, tuple[Cell, str]]] = {}
    for cell in cells:
        if RETRIEVAL_ALONE in cell.arms:
            found.setdefault(cell.fusion, {}).setdefault(cell.seed, (cell, RETRIEVAL_ALONE))
    return max(found.values(), key=len, default={})


def _rows(cells: Sequence[Cell], setting: Setting) -> list[Row]:
    """Gather the cells of a setting into rows: trained ones, those covered by them, and retrieval alone."""
    seeds = tuple(sorted({cell.seed for cell in cells}))
    sources: dict[RowKey, dict[int, tuple[Cell, str]]] = {}
    for cell in cells:
        sources.setdefault(RowKey(cell.method, cell.fusion), {})[cell.seed] = (cell, cell.own_arm)
    own = set(sources)
    for cell in cells:
        covers = cell.covers or ((NONE,) if cell.fusion == _TRAINED_ALIKE else ())
        for fusion in covers:
            if RowKey(cell.method, fusion) not in own:
                sources.setdefault(RowKey(cell.method, fusion), {})[cell.seed] = (cell, OFF)
    alone = _retrieval_alone(cells)
    if alone:
        sources[RowKey(ALONE, NONE)] = alone
    return [
        Row(
            setting,
            key,
            {seed: cell for seed, (cell, _) in found.items()},
            {seed: arm for seed, (cell, arm) in found.items() if arm in cell.arms},
            seeds,
        )
        for key, found in sources.items()
    ]
