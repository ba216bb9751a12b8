"""The cells of a suite, in the order they are run: what each is called, what decides its result, what it shares."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from peft_rag.benchmark.filters import passing
from peft_rag.benchmark.sources import content_hashes, expanded, why_absent
from peft_rag.benchmark.space import Settings, search_space, trial_points
from peft_rag.benchmark.suite import NO_FUSION, DataSet, Entry, Suite
from peft_rag.contents import held_by
from peft_rag.errors import ConfigError, DataError
from peft_rag.files import sha256_of_json
from peft_rag.parts import make_part
from peft_rag.registry import FUSIONS, load

if TYPE_CHECKING:
    from peft_rag.config import RunConfig
    from peft_rag.fusion.base import Fusion

FORMAT = 1
_OF_ROWS = ("method.", "fusion.")


@dataclass(frozen=True)
class Setting:
    """One data set with a number of shots on one backbone: what methods are compared within.

    Attributes:
        suite: it belongs to.
        data: the data set.
        shots: examples per class; 0 for all.
        backbone: the frozen transformer.
    """

    suite: Suite
    data: DataSet
    shots: int
    backbone: str

    @property
    def name(self) -> str:
        """``dataset[-Nshot][-backbone]``; the suite's first backbone goes without saying."""
        shots = f"-{self.shots}shot" if self.shots else ""
        first, *others = self.suite.backbones
        other = "" if self.backbone == first else f"-{_told_apart(self.backbone, others)}"
        return f"{self.data.name}{shots}{other}"

    @property
    def settings(self) -> Settings:
        """What a run file says of every run within; paths keep their variables."""
        return {
            **self.suite.options,
            **self.data.settings(),
            "shots": self.shots,
            "backbone": self.backbone,
            "max_steps": self.suite.budget.max_steps,
        }

    @cached_property
    def fingerprint(self) -> str:
        """Return a hash of what all results within have in common, whatever the row and the seed."""
        return _fingerprint(self.settings, self.data)


@dataclass(frozen=True)
class Study:
    """The trials of one method within one setting; what they choose serves every seed and every fusion.

    They are run without retrieval, on validation alone, with the suite's tuning seed and the budget of every run.
    """

    setting: Setting
    method: Entry

    @property
    def name(self) -> str:
        return f"{self.setting.name}-{self.method.label}"

    @cached_property
    def points(self) -> list[Settings]:
        """The settings that are tried, in order; what suite or data set fix is not."""
        fixed = {**self.setting.suite.options, **self.setting.data.options, **self.method.options}
        return trial_points(search_space(replace(self.method, options=fixed)), self.setting.suite.budget.trials)

    def trial(self, number: int) -> Settings:
        """Return the run of one trial; the test split is not named, so that it cannot be read."""
        settings = self.setting.settings | {
            "method": self.method.name,
            **self.method.options,
            **self.points[number],
            "fusion": NO_FUSION,
            "seed": self.setting.suite.budget.tuning_seed,
        }
        return {name: value for name, value in settings.items() if name != "test" and not name.startswith("fusion.")}

    def fingerprint(self, number: int) -> str:
        """Return a hash of all that decides the result of a trial."""
        return _fingerprint(self.trial(number), self.setting.data, without=("test",))


@dataclass(frozen=True)
class Search:
    """What is retrieved for one seed's data within one setting: index, neighbours and leak audit, made once."""

    setting: Setting
    seed: int

    @property
    def name(self) -> str:
        return f"{self.setting.name}-s{self.seed}"

    @property
    def settings(self) -> Settings:
        """The run that its neighbours belong to; what the suite says of rows is not its."""
        common = {name: value for name, value in self.setting.settings.items() if not name.startswith(_OF_ROWS)}
        return common | {"method": "head", "fusion": NO_FUSION, "seed": self.seed}

    @property
    def fingerprint(self) -> str:
        """Return a hash of all that decides it."""
        fusions = [[entry.name, dict(entry.options)] for entry in self.setting.suite.fusions]
        return _fingerprint(self.settings | {"fusions": fusions}, self.setting.data)


@dataclass(frozen=True)
class Cell:
    """One method with one fusion on one seed's data.

    Attributes:
        setting: data set, shots and backbone.
        method: the row's method.
        fusion: the row's fusion.
        seed: of the data drawn, initialisation and order.
        covers: labels of the fusions whose rows this cell's arms hold too, because the training is the same.
    """

    setting: Setting
    method: Entry
    fusion: Entry
    seed: int
    covers: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.setting.name}-{self.method.label}-{self.fusion.label}-s{self.seed}"

    @property
    def study(self) -> Study:
        return Study(self.setting, self.method)

    @property
    def search(self) -> Search:
        return Search(self.setting, self.seed)

    @property
    def key(self) -> dict[str, Any]:
        """What the cell is, as its file says it."""
        return {
            "dataset": self.setting.data.name,
            "shots": self.setting.shots,
            "backbone": self.setting.backbone,
            "method": self.method.label,
            "fusion": self.fusion.label,
            "seed": self.seed,
        }

    def settings(self, chosen: Mapping[str, Any]) -> Settings:
        """Return the run of the cell with the settings that its study chose; the fusion's own come last."""
        return {
            **self.setting.settings,
            "method": self.method.name,
            **self.method.options,
            **chosen,
            "fusion": self.fusion.name,
            **self.fusion.options,
            "seed": self.seed,
        }

    @cached_property
    def fingerprint(self) -> str:
        """Return a hash of everything in the suite that decides the cell's result, and of nothing else in it."""
        budget = self.setting.suite.budget
        decisive = self.settings({}) | {
            "trials": self.study.points,
            "tuning_seed": budget.tuning_seed,
            "controls": sorted(self.setting.suite.controls),
            "covers": sorted(self.covers),
        }
        return _fingerprint(decisive, self.setting.data)


@dataclass(frozen=True)
class Plan:
    """What is to be done.

    Attributes:
        suite: whose cells they are.
        cells: in the order they are run: one seed after the other, each through every method and fusion.
        skipped: why a data set is left out, by its name.
    """

    suite: Suite
    cells: tuple[Cell, ...]
    skipped: Mapping[str, str]


def make_plan(suite: Suite, only: Mapping[str, frozenset[str]] | None = None, *, require_data: bool = False) -> Plan:
    """List the cells of a suite.

    A row without retrieval needs no cell where another fusion of the suite trains without neighbours: that cell's arm
    without retrieval is the row.

    Args:
        suite: the suite.
        only: values that a cell must have (`filters.read_filter`); all cells by default.
        require_data: raise where a data set is absent, instead of leaving it out.

    Raises:
        DataError: a data set is absent, and it is required, the only one or asked for.
        ConfigError: an option, a search space or a filter cannot be used.
    """
    skipped = {data.name: why for data in suite.data if (why := why_absent(data))}
    if skipped and (require_data or len(skipped) == len(suite.data)):
        name, why = next(iter(skipped.items()))
        raise DataError(f"data set '{name}' is absent: {why}.")
    fusions = _trained_fusions(suite)
    settings = [
        Setting(suite, data, shots, backbone)
        for data in suite.data
        if data.name not in skipped
        for shots in data.shots
        for backbone in suite.backbones
    ]
    cells = [
        Cell(setting, method, fusion, seed, covers)
        for seed in suite.seeds
        for setting in settings
        for fusion, covers in fusions
        for method in suite.methods
    ]
    _check_cells(cells)
    return Plan(suite, tuple(passing(cells, only or {}, skipped)), skipped)


def as_run(settings: Mapping[str, Any]) -> RunConfig:
    """Check the names of a run and make its configuration, sources with their variables as they are."""
    from peft_rag.config import from_mapping

    return from_mapping({**settings, "output": "out"}, where="the suite")


def fusion_of(entry: Entry, setting: Setting) -> Fusion:
    """Make a row's fusion with its options."""
    options = as_run({**setting.settings, "fusion": entry.name, **entry.options}).part_options("fusion")
    fusion: Fusion = make_part(load(FUSIONS, entry.name), "fusion", options)
    return fusion


def _trained_fusions(suite: Suite) -> list[tuple[Entry, tuple[str, ...]]]:
    """Return the fusions that need a training of their own, cheap ones first, each with what its cells cover."""
    setting = Setting(suite, suite.data[0], suite.data[0].shots[0], suite.backbones[0])
    ordered = sorted(suite.fusions, key=lambda entry: fusion_of(entry, setting).reads_neighbours)
    cover = next((e for e in ordered if e.name != NO_FUSION and not fusion_of(e, setting).reads_neighbours), None)
    covered = [e for e in ordered if e.name == NO_FUSION and cover is not None and _same_training(e, cover)]
    return [
        (entry, tuple(one.label for one in covered) if entry is cover else ())
        for entry in ordered
        if entry not in covered
    ]


def _same_training(none: Entry, cover: Entry) -> bool:
    """Say whether two fusions differ in nothing but the fusion's own options."""

    def rest(entry: Entry) -> dict[str, Any]:
        return {name: value for name, value in entry.options.items() if not name.startswith("fusion.")}

    return rest(none) == rest(cover)


def _check_cells(cells: list[Cell]) -> None:
    """Check every method's and fusion's options once, and that no two cells share a file."""
    from peft_rag.methods import resolve
    from peft_rag.methods.options import build_config

    names: set[str] = set()
    checked: set[tuple[str, str]] = set()
    for cell in cells:
        alike = re.sub("[^a-z0-9]+", "-", cell.name.lower())
        if alike in names:
            raise ConfigError(
                f"two cells are called '{cell.name}', or like it but for case and signs. Give a data set, method or "
                "fusion another label."
            )
        names.add(alike)
        for row, entry in (("method", cell.method), ("fusion", cell.fusion)):
            if (row, entry.label) in checked:
                continue
            checked.add((row, entry.label))
            if row == "fusion":
                fusion_of(entry, cell.setting)
                continue
            for point in cell.study.points:
                options = as_run(cell.settings(point)).part_options("method")
                build_config(resolve(entry.name), entry.name, options)


def _fingerprint(settings: Mapping[str, Any], data: DataSet, without: tuple[str, ...] = ()) -> str:
    hashes = {split: value for split, value in content_hashes(data).items() if split not in without}
    besides = held_by(expanded(settings))
    named = {"named": besides} if besides else {}
    return sha256_of_json({"format": FORMAT, "settings": dict(settings), "data": hashes, **named})


def _told_apart(name: str, names: Sequence[str]) -> str:
    """Return the shortest end of a path that no other of these has, as a part of a file's name."""
    parts = name.split("/")
    ends = ("/".join(parts[-count:]) for count in range(1, len(parts)))
    alone = (end for end in ends if sum(f"/{one}".endswith(f"/{end}") for one in names) == 1)
    return re.sub(r"[^A-Za-z0-9._]+", "-", next(alone, name)).strip("-.") or "backbone"
