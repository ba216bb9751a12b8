"""Who takes part: methods × settings × fusions that train differently, each small enough and fit for the backbone."""

from __future__ import annotations

import copy
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peft_rag.benchmark.space import Settings, search_space, trial_points
from peft_rag.benchmark.suite import NO_FUSION, Entry
from peft_rag.config import RunConfig, from_mapping, override
from peft_rag.errors import ConfigError, PeftRagError, RetrievalError
from peft_rag.recommendation.options import SearchOptions

if TYPE_CHECKING:
    from peft_rag.backbone import Backbone
    from peft_rag.job import Prepared

Say = Callable[[str], None]

LOOKS = 4
"""How often a run looks at validation, where its steps can be cut so."""


@dataclass(frozen=True)
class Candidate:
    """One training that could be recommended.

    Attributes:
        method: by name.
        settings: learning rate and knob, by names of a run file.
        fusions: that this one training serves, the simplest first; it is run with the last of them.
        size: bytes of the artefact it would leave, measured.
    """

    method: str
    settings: Settings
    fusions: tuple[str, ...]
    size: int

    @property
    def label(self) -> str:
        """Say it in words.

        >>> Candidate("lora", {"learning_rate": 3e-4, "method.r": 8}, ("none", "concat"), 9).label
        'lora (learning rate 0.0003, r 8)'
        """
        settings = ", ".join(f"{_in_words(name)} {value}" for name, value in self.settings.items())
        return f"{self.method} ({settings})" if settings else self.method

    def config(self, base: RunConfig, steps: int) -> RunConfig:
        """Return its run; a test split is named only if the base names one."""
        return settled(base, self.method, {**self.settings, **looks(base, steps)}, self.fusions[-1])


@dataclass(frozen=True)
class Dropped:
    """A candidate that does not take part.

    Attributes:
        label: what it is.
        why: in words.
        size: bytes of its artefact, where that is known.
    """

    label: str
    why: str
    size: int = 0


@dataclass(frozen=True)
class Survey:
    """What was found before anything is trained.

    Attributes:
        by_width: the candidates, by settings for each method: all of them first, one each last; the methods' defaults
            come first in each.
        dropped: who does not take part.
        prepared: the data of every run, with an untrained model.
    """

    by_width: tuple[tuple[Candidate, ...], ...]
    dropped: tuple[Dropped, ...]
    prepared: Prepared


def with_fusion(name: str) -> str:
    """Say that a fusion takes part.

    >>> with_fusion("knn"), with_fusion("none")
    ('with knn', 'without retrieval')
    """
    return "without retrieval" if name == NO_FUSION else f"with {name}"


def settled(base: RunConfig, method: str, settings: Mapping[str, Any], fusion: str) -> RunConfig:
    """Return a run with a method, settings by names of a run file, and a fusion."""
    chosen = from_mapping({"train": base.train, "output": base.output, **settings}, where="recommend")
    options = {name: given for name, given in base.options.items() if name != "fusion" or fusion == base.fusion}
    return override(
        base, method=method, fusion=fusion, options=options | chosen.options, training=base.training | chosen.training
    )


def looks(base: RunConfig, steps: int) -> Settings:
    """Return how long a run is and when it looks at validation: `LOOKS` times or about, evenly, and at its end."""
    settings: Settings = {"max_steps": steps}
    if not {"eval_strategy", "eval_steps", "save_strategy", "save_steps"} & set(base.training):
        every = steps // next(times for times in (LOOKS, 3, 5, 2, 1) if steps % times == 0)
        settings |= {"eval_strategy": "steps", "eval_steps": every, "save_strategy": "steps", "save_steps": every}
    return settings


def looks_within(base: RunConfig, steps: int) -> int:
    """Return how often a run of so many steps looks at validation; 0 where its own settings decide that."""
    every = looks(base, steps).get("eval_steps")
    return steps // every if every else 0


def survey(base: RunConfig, options: SearchOptions, say: Say) -> Survey:
    """Attach every variant of every method, measure its artefact, and leave out what is too large or does not fit.

    The size is that of the artefact's own files, saved before training: the tensors keep their shapes, and the numbers
    a fusion is fitted to take no more room than the ``null`` before.

    Raises:
        ConfigError: nobody is left; where a budget is the reason, the smallest and its bytes are named.
        RetrievalError: none of the fusions can use the corpus.
    """
    from peft_rag.backbone import load_backbone

    dropped: list[Dropped] = []
    groups = _fusion_groups(base, options.fusions, dropped)
    task = groups[0].prepared.splits.task
    backbone = load_backbone(base.backbone_name, head=task.backbone_head)
    rows = []
    for method in options.methods:
        for group in groups:
            found = _Attempt(base, options, method, group, backbone).candidates(dropped)
            if found:
                rows.append(found)
    for one in dropped:
        say(f"left out: {one.label}, {one.why}")
    if not rows:
        raise ConfigError(_nobody(options, dropped))
    widths = [_in_turn([row[:width] for row in rows]) for width in range(max(map(len, rows)), 0, -1)]
    return Survey(tuple(widths), tuple(dropped), groups[0].prepared)


@dataclass(frozen=True)
class _Group:
    """Fusions that one training serves, the simplest first, and the data as the last of them is given it."""

    fusions: tuple[str, ...]
    prepared: Prepared


@dataclass(frozen=True)
class _Attempt:
    """One method with the fusions of one training: which variants of it take part."""

    base: RunConfig
    options: SearchOptions
    method: str
    group: _Group
    backbone: Backbone

    def candidates(self, dropped: list[Dropped]) -> list[Candidate]:
        """Return the settings to try, the method's defaults first; what is left out joins ``dropped``."""
        fusions = self.group.fusions
        try:
            space = search_space(Entry(self.method, options=self.base.training))
        except PeftRagError as error:
            dropped.append(Dropped(self.method, f"which cannot be loaded: {error}"))
            return []
        knob = next((name for name in space if name.startswith("method.")), "")
        sizes: dict[Any, int] = {}
        for value in space.get(knob, (None,)):
            measured = self._variant({knob: value} if knob else {}, dropped)
            if measured is None:
                continue
            sizes[value], trains = measured
            if not trains:  # nothing but the head, which is fitted anew after training: one choice of settings is all
                return [Candidate(self.method, {}, fusions, sizes[value])]
        if not sizes:
            return []
        space |= {knob: tuple(sizes)} if knob else {}
        points = trial_points(space, min(self.options.trials, math.prod(map(len, space.values()))))
        return [Candidate(self.method, point, fusions, sizes[point[knob] if knob else None]) for point in points]

    def _variant(self, settings: Settings, dropped: list[Dropped]) -> tuple[int, bool] | None:
        """Return bytes, and whether anything in the backbone is trained; None for a variant that is left out."""
        candidate = Candidate(self.method, settings, self.group.fusions, 0)
        beside = f", with {candidate.fusions[0]}" if self.group.prepared.model.fusion.reads_neighbours else ""
        try:
            size, trains = self._measure(settled(self.base, self.method, settings, candidate.fusions[-1]))
        except Exception as error:  # a plugin may raise anything, and must not end the search for the others
            kind = "" if isinstance(error, PeftRagError) else f"{type(error).__name__}: "
            why = f"which does not fit: {kind}{' '.join(str(error).split())}"
            dropped.append(Dropped(candidate.label + beside, why))
            return None
        allowed = self.options.budget_bytes
        if allowed and size > allowed:
            why = f"whose artefact takes {size:,} bytes, more than the {allowed:,} of --budget-bytes"
            dropped.append(Dropped(candidate.label + beside, why, size))
            return None
        return size, trains

    def _measure(self, config: RunConfig) -> tuple[int, bool]:
        """Attach the method to a copy of the backbone, save the artefact, and weigh its files."""
        from peft_rag.artefact_files import artefact_bytes
        from peft_rag.model import RetrievalAugmentedModel

        like = self.group.prepared.model
        fresh = replace(self.backbone, model=copy.deepcopy(self.backbone.model))
        model = RetrievalAugmentedModel(fresh, like.task, like.fusion, like.knowledge, max_length=config.max_length)
        model.long_inputs = dict(like.long_inputs)
        options = config.part_options("method")
        report = model.attach(config.method, last_layers=config.last_layers or None, **options)
        with tempfile.TemporaryDirectory() as place:
            size = artefact_bytes(model.save_pretrained(Path(place) / "artefact"))
        return size, report.trainable_parameters > 0


def _fusion_groups(base: RunConfig, given: Sequence[str], dropped: list[Dropped]) -> list[_Group]:
    """Group fusions by training: those that leave the inputs alone share one, each other has its own.

    A fusion that this corpus cannot serve is left out, unless it is the only one.
    """
    from peft_rag.job import prepare

    plain: list[str] = []
    groups: list[_Group] = []
    ordered = sorted(given, key=lambda name: name != NO_FUSION)
    for name in ordered:
        try:
            with tempfile.TemporaryDirectory() as place:
                prepared = prepare(settled(base, "head", {}, name), Path(place), _silent)
        except RetrievalError as error:
            if name == ordered[-1] and not groups:
                raise
            dropped.append(Dropped(name, f"a fusion that cannot be used here: {error}"))
            continue
        if prepared.model.fusion.reads_neighbours:
            groups.append(_Group((name,), prepared))
        else:
            plain.append(name)
            groups = [group for group in groups if group.prepared.model.fusion.reads_neighbours]
            groups.insert(0, _Group(tuple(plain), prepared))
    return groups


def _in_turn(rows: Sequence[Sequence[Candidate]]) -> tuple[Candidate, ...]:
    """Take the first of each row, then the second of each, so that a search cut short has seen every method."""
    longest = max(len(row) for row in rows)
    return tuple(row[place] for place in range(longest) for row in rows if place < len(row))


def _nobody(options: SearchOptions, dropped: Sequence[Dropped]) -> str:
    sized = [one for one in dropped if one.size]
    if not sized:
        return f"none of the methods can be used: {dropped[0].label}, {dropped[0].why}"
    smallest = min(sized, key=lambda one: one.size)
    return (
        f"no candidate's artefact fits --budget-bytes {options.budget_bytes:,}: the smallest is {smallest.label} with "
        f"{smallest.size:,} bytes. Raise the budget to that, or name a smaller method with --methods."
    )


def _in_words(name: str) -> str:
    return name.rpartition(".")[2].replace("_", " ")


def _silent(line: str) -> None:
    """Say nothing."""
