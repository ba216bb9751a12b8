"""What a benchmark is: one YAML file that names data sets, methods, fusions, seeds and the budget all of them share."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from peft_rag.config import DEFAULT_MODEL, flat_settings, read_yaml
from peft_rag.contents import SOURCES
from peft_rag.counts import check_count
from peft_rag.errors import ConfigError
from peft_rag.registry import FUSIONS, METHODS, Group, names, suggest

CONTROLS = ("random", "shuffled", "oracle", "filler")
NO_FUSION = "none"

_SAFE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_DECIDED = {
    "shots": "shots of a data set",
    "seed": "seeds",
    "backbone": "backbones",
    "max_steps": "budget.max_steps",
    "output": "--output",
    "resume": "running the suite again, which goes on where it stopped",
}
_FIELDS = ("text_field", "label_field", "id_field", "group_field")

Kind = TypeVar("Kind")


@dataclass(frozen=True)
class DataSet:
    """One data set of a suite; sources are named as in a run file, with ``$VARIABLES`` in paths.

    Attributes:
        name: how rows and files call it.
        train, validation, test, corpus: sources; the test split is needed, the others as in `RunConfig`.
        text_field, label_field, id_field, group_field: names of the fields; those of `RunConfig` where empty.
        shots: examples per class drawn for training, one sub-suite for each; 0 takes all.
        options: further names of a run file, for this data set alone.
    """

    name: str
    train: str
    test: str
    validation: str = ""
    corpus: str = ""
    text_field: str = ""
    label_field: str = ""
    id_field: str = ""
    group_field: str = ""
    shots: tuple[int, ...] = (0,)
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_label("data set", self.name)
        _check_distinct(f"shots of data set '{self.name}'", self.shots)
        _check_whole_numbers(f"shots of data set '{self.name}'", self.shots)

    @property
    def sources(self) -> dict[str, str]:
        """The sources that are named, by split."""
        return {name: getattr(self, name) for name in SOURCES if getattr(self, name)}

    def settings(self) -> dict[str, Any]:
        """Return what a run file says of this data."""
        named = {name: getattr(self, name) for name in _FIELDS if getattr(self, name)}
        return {**self.sources, **named, **self.options}


@dataclass(frozen=True)
class Entry:
    """A method or a fusion as a row of the suite.

    Attributes:
        name: the plugin's.
        label: how rows and files call it; its name where empty.
        options: further names of a run file, e.g. ``method.r``, ``fusion.k`` or ``max_length``.
        search: of a method: values to try by name of a run file; what is left out is searched by default.
    """

    name: str
    label: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    search: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "label", self.label or self.name)
        _check_label("row", self.label)
        for axis, values in self.search.items():
            if not isinstance(values, (list, tuple)) or not values:
                raise ConfigError(f"search of '{self.label}': {axis} is {values!r}. Give a list of values to try.")


@dataclass(frozen=True)
class Budget:
    """What every method gets, the same for all.

    Attributes:
        max_steps: optimiser steps of every run, trials included.
        trials: settings tried on validation for each method on each data set.
        tuning_seed: seed of the trials, of data and initialisation; none of the suite's own.
        time_limit: seconds after which a cell or trial is stopped and counted as failed.
    """

    max_steps: int
    trials: int = 4
    tuning_seed: int = 1000
    time_limit: float = 7200.0

    def __post_init__(self) -> None:
        for name, least in (("max_steps", 1), ("trials", 1), ("tuning_seed", 0)):
            check_count(f"budget.{name}", getattr(self, name), least)
        if not isinstance(self.time_limit, (int, float)) or not self.time_limit > 0:
            raise ConfigError(f"budget.time_limit is {self.time_limit!r}; it must be a number of seconds above 0.")


@dataclass(frozen=True)
class Suite:
    """A grid of cells: data sets × shots × backbones × methods × fusions × seeds.

    Attributes:
        name: of the folder its results lie in.
        data: the data sets.
        methods: rows by method; ``head`` and ``full`` are methods like any other.
        fusions: rows by fusion.
        budget: the same for all.
        backbones: frozen transformers by name or folder.
        seeds: one cell each.
        controls: arms that say what retrieval is worth: of `CONTROLS`.
        reference: labels of the method and the fusion that every row is compared with.
        options: further names of a run file, for every cell.
    """

    name: str
    data: tuple[DataSet, ...]
    methods: tuple[Entry, ...]
    fusions: tuple[Entry, ...]
    budget: Budget
    backbones: tuple[str, ...] = (DEFAULT_MODEL,)
    seeds: tuple[int, ...] = (0, 1, 2)
    controls: tuple[str, ...] = CONTROLS
    reference: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check what can be checked without loading anything.

        Raises:
            ConfigError: a list is empty or names something twice, or a name is unknown.
        """
        _check_label("suite", self.name)
        for what in ("data", "methods", "fusions", "backbones", "seeds"):
            given = [getattr(entry, "label", None) or getattr(entry, "name", entry) for entry in getattr(self, what)]
            _check_distinct(what, given)
        _check_whole_numbers("seeds", self.seeds)
        _check_names("control", self.controls, CONTROLS)
        _check_names("key of 'reference'", list(self.reference), ("method", "fusion"))
        labels = {"method": self.methods, "fusion": self.fusions}
        for key, label in self.reference.items():
            _check_names(f"{key} of the reference row", [label], [entry.label for entry in labels[key]])
        if self.budget.tuning_seed in self.seeds:
            raise ConfigError(
                f"budget.tuning_seed is {self.budget.tuning_seed}, a seed of the suite too. "
                "Trials need a seed of their own; choose another."
            )


def _with_flat_options(given: Any, where: str) -> dict[str, Any]:
    """Return a mapping whose ``options`` have a name each.

    Raises:
        ConfigError: a name is no text, or one of what the grid decides.
    """
    settings = _mapping(given, where)
    if not isinstance(settings.get("options"), Mapping):
        return settings
    options = flat_settings(settings["options"], f"{where}: options")
    for name in options:
        if not isinstance(name, str):
            raise ConfigError(f"{where}: options: {name!r} is no name of a run file.")
        if name in _DECIDED:
            raise ConfigError(f"{where}: options: {name} is decided by the grid. Say it by {_DECIDED[name]}.")
    decided = [part for part in ("method", "fusion") if part in options]
    if decided:
        raise ConfigError(f"{where}: options name a {decided[0]}. Rows do, under {decided[0]}s.")
    return {**settings, "options": options}


def read_suite(path: str | Path) -> Suite:
    """Read a suite.

    Raises:
        ConfigError: the file cannot be read, a key is unknown or missing, or a value is of the wrong kind.
    """
    return suite_from_mapping(read_yaml(path, "suite"), where=str(path))


def suite_from_mapping(given: Mapping[str, Any], where: str = "the suite") -> Suite:
    """Make a suite of names and values as its YAML file gives them; see `read_suite`."""
    settings = _with_flat_options(given, where)
    _check_keys(Suite, settings, where)
    data = settings["data"]
    if not isinstance(data, Mapping):
        raise ConfigError(f"{where}: 'data' is {data!r}. Give a name and its sources, e.g. 'mine: {{train: …}}'.")
    settings["data"] = tuple(
        _make(
            DataSet,
            {"name": str(name), **_with_flat_options(about, f"{where}: data set '{name}'")},
            f"data set '{name}'",
        )
        for name, about in data.items()
    )
    settings["methods"] = _entries(settings["methods"], METHODS, f"{where}: methods")
    settings["fusions"] = _entries(settings["fusions"], FUSIONS, f"{where}: fusions")
    searched = next((entry for entry in settings["fusions"] if entry.search), None)
    if searched is not None:
        raise ConfigError(
            f"{where}: fusion '{searched.label}' has a search, but trials try settings of methods. Make a row of each."
        )
    settings["budget"] = _make(Budget, _mapping(settings["budget"], f"{where}: budget"), f"{where}: budget")
    return _make(Suite, settings, where)


def _entries(given: Any, group: Group, where: str) -> tuple[Entry, ...]:
    """Read rows: a name each, or a mapping of a name and what differs."""
    if not isinstance(given, list):
        raise ConfigError(f"{where}: expected a list of names, got {given!r}.")
    entries = []
    for item in given:
        settings = {"name": item} if isinstance(item, str) else _with_flat_options(item, where)
        entry = _make(Entry, settings, where)
        known = names(group)
        if entry.name not in known:
            raise group.unknown(
                f"{where}: no {group.noun} '{entry.name}'.{suggest(entry.name, known)} "
                f"(peft-rag {group.command} lists all)."
            )
        entries.append(entry)
    return tuple(entries)


def _make(kind: type[Kind], settings: Mapping[str, Any], where: str) -> Kind:
    _check_keys(kind, settings, where)
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()})


def _check_keys(kind: type, settings: Mapping[str, Any], where: str) -> None:
    entries = {entry.name: entry for entry in fields(kind)}  # type: ignore[arg-type]
    for name in settings:
        if name not in entries:
            raise ConfigError(
                f"{where}: unknown key '{name}'.{suggest(str(name), list(entries))} Keys: {', '.join(entries)}."
            )
    for name, entry in entries.items():
        if entry.default is MISSING and entry.default_factory is MISSING and name not in settings:
            raise ConfigError(f"{where}: '{name}' is missing. Keys: {', '.join(entries)}.")
        container = {"tuple": list, "Mapping": Mapping, "str": str}.get(str(entry.type).split("[")[0])
        if name in settings and container and not isinstance(settings[name], (container, tuple)) and name != "data":
            kinds = {list: "a list", Mapping: "a mapping of names to values", str: "text"}
            raise ConfigError(f"{where}: '{name}' is {settings[name]!r}, but must be {kinds[container]}.")


def _mapping(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where}: expected names and values, got {value!r}.")
    return dict(value)


def _check_label(what: str, label: str) -> None:
    if not _SAFE.fullmatch(label):
        raise ConfigError(
            f"{what} '{label}' cannot name a file. Use letters, digits, '.', '_' and '-', beginning with a letter or "
            "digit."
        )


def _check_distinct(what: str, given: Sequence[Any]) -> None:
    if not given:
        raise ConfigError(f"'{what}' is empty. Give at least one.")
    twice = next((one for one in given if given.count(one) > 1), None)
    if twice is not None:
        raise ConfigError(f"'{what}' names {twice!r} twice. Give one of them a label of its own, or remove it.")


def _check_whole_numbers(what: str, given: Sequence[Any]) -> None:
    for value in given:
        check_count(f"each of the {what}", value, 0)


def _check_names(what: str, given: Sequence[str], known: Sequence[str]) -> None:
    for name in given:
        if name not in known:
            raise ConfigError(f"no {what} '{name}'.{suggest(str(name), list(known))} There are: {', '.join(known)}.")
