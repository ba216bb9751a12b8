"""The pieces a suite falls into, each a process and a file: searches, then trials, then the cells that rest on them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft_rag.benchmark.plan import FORMAT, Cell, Plan, Search, Study, make_plan
from peft_rag.benchmark.provenance import plugin_packages
from peft_rag.benchmark.results import DONE, choose, read_result, tuning_of, why_stale
from peft_rag.benchmark.suite import Entry, Suite
from peft_rag.benchmark.work import command_of
from peft_rag.errors import ConfigError

TRIALS, SEARCHES = "trials", "searches"


class CannotRun(Exception):  # noqa: N818 - no fault of a user's, but what a cell's file will say
    """A cell rests on something that failed; its text is the cell's error."""


@dataclass(frozen=True)
class Piece:
    """One process and the file it leaves.

    Attributes:
        kind: ``search``, ``trial`` or ``cell``.
        name: as progress lines call it.
        target: the file.
        fingerprint: of all in the suite that decides it.
        work: the search, the trial's study or the cell.
        number: of a trial within its study.
    """

    kind: str
    name: str
    target: Path
    fingerprint: str
    work: Search | Study | Cell
    number: int = 0

    @property
    def class_of_cost(self) -> tuple[str, str]:
        """What takes about as long: pieces of one kind, and cells of one fusion."""
        return self.kind, self.work.fusion.label if isinstance(self.work, Cell) else ""

    def header(self) -> dict[str, Any]:
        """Return what its file says whatever becomes of it."""
        common = {"format": FORMAT, "suite": suite_of(self).name, "suite_fingerprint": self.fingerprint}
        if isinstance(self.work, Study):
            settings = self.work.points[self.number]
            return {**common, "trial": {"study": self.work.name, "number": self.number}, "settings": settings}
        if isinstance(self.work, Search):
            return {**common, "search": self.work.name}
        setting = {"setting_fingerprint": self.work.setting.fingerprint}
        return {**common, **setting, "cell": self.work.key, "covers": list(self.work.covers)}


def search_piece(search: Search, folder: Path) -> Piece:
    """Return the piece that searches one seed's data."""
    return Piece("search", search.name, folder / SEARCHES / f"{search.name}.json", search.fingerprint, search)


def trial_pieces(study: Study, folder: Path) -> list[Piece]:
    """Return the pieces of a study, one a trial; none where there is one setting, which needs no choosing."""
    if len(study.points) == 1:
        return []
    return [
        Piece(
            "trial",
            f"{study.name} trial {number + 1}",
            folder / TRIALS / f"{study.name}-{number + 1}.json",
            study.fingerprint(number),
            study,
            number,
        )
        for number in range(len(study.points))
    ]


def cell_piece(cell: Cell, folder: Path) -> Piece:
    """Return the piece that measures a cell."""
    return Piece("cell", cell.name, folder / f"{cell.name}.json", cell.fingerprint, cell)


def suite_of(piece: Piece) -> Suite:
    """Return the suite that a piece belongs to."""
    return piece.work.setting.suite


def needed_by(piece: Piece, folder: Path) -> list[Piece]:
    """Return the pieces whose files must be there before this one can start."""
    if not isinstance(piece.work, Cell):
        return []
    return [search_piece(piece.work.search, folder), *trial_pieces(piece.work.study, folder)]


def open_pieces(plan: Plan, folder: Path, *, redo: bool) -> list[Piece]:
    """List what is still to be done, in order: cells without a valid file, each after what it rests on.

    Args:
        plan: of the suite.
        folder: of its results.
        redo: do again what is stale or did not end well.

    Raises:
        ConfigError: a file of a cell or a trial is stale, and it is not to be done again, or one that would stand in a
            table beside what is to be done; results are never mixed.
        ArtefactError: a file is no result.
    """
    stale: dict[str, str] = {}
    todo: dict[Path, Piece] = {}
    for cell in plan.cells:
        piece = cell_piece(cell, folder)
        if _valid(piece, redo, stale):
            continue
        for needed in needed_by(piece, folder):
            remade = {} if needed.kind == "search" else stale  # what is found follows from the data alone
            if needed.target not in todo and not _valid(needed, redo, remade):
                todo[needed.target] = needed
        todo[piece.target] = piece
    if stale and not redo:
        name, why = next(iter(stale.items()))
        raise ConfigError(
            f"{len(stale)} of the results in '{folder}' no longer count, '{name}' first: {why}. "
            "Run them again with --redo, or keep them and name another folder with --output."
        )
    if todo:
        _refuse_mixing(plan, folder)
    return list(todo.values())


def _refuse_mixing(plan: Plan, folder: Path) -> None:
    """Refuse cells of a plan beside stale ones that the same tables hold and a filter leaves out."""
    chosen, settings = {cell.name for cell in plan.cells}, {cell.setting.name for cell in plan.cells}
    stale: dict[str, str] = {}
    for cell in make_plan(plan.suite).cells:
        if cell.setting.name in settings and cell.name not in chosen:
            _valid(cell_piece(cell, folder), False, stale)
    if stale:
        name, why = next(iter(stale.items()))
        raise ConfigError(
            f"{len(stale)} of the results in '{folder}' that --only leaves out no longer count, '{name}' first: {why}. "
            "New ones would stand beside them in one table. Run all of them again with --redo and without --only, or "
            "name another folder with --output."
        )


def is_done(piece: Piece) -> bool:
    """Say whether a piece's file is there, ended well and counts, whoever has written it."""
    return _valid(piece, redo=True, stale={})


def spec_of(piece: Piece, folder: Path) -> dict[str, Any]:
    """Return what a worker must know to do a piece; for a cell, its trials and its search must be done.

    Raises:
        CannotRun: a cell rests on a search or on trials that failed.
    """
    spec: dict[str, Any] = {"kind": piece.kind, "target": str(piece.target), "header": piece.header()}
    if isinstance(piece.work, Study):
        settings = piece.work.trial(piece.number)
    elif isinstance(piece.work, Search):
        settings = piece.work.settings
        spec["fusions"] = [_fusion_settings(entry) for entry in piece.work.setting.suite.fusions]
    else:
        settings, more = _cell_spec(piece.work, folder)
        spec["header"] |= more.pop("header")
        spec |= more
    return spec | {"settings": settings, "packages": plugin_packages(settings)}


def packages_of(cells: Iterable[Cell]) -> list[str]:
    """Return the top packages of every plugin that some cells use."""
    used = {(cell.method.name, cell.fusion.name): cell.settings({}) for cell in cells}
    return sorted({package for settings in used.values() for package in plugin_packages(settings)})


def failure_header(piece: Piece, folder: Path) -> dict[str, Any]:
    """Return the header of a piece that left no file itself, with what is known of its trials."""
    if not isinstance(piece.work, Cell):
        return piece.header()
    trials = _results(trial_pieces(piece.work.study, folder))
    return {**piece.header(), **_empty_cell(), "tuning": tuning_of(trials, _chosen(piece.work.study, trials))}


def _chosen(study: Study, trials: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    return choose(trials) if trials else study.points[0]


def _cell_spec(cell: Cell, folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    (search,) = _results([search_piece(cell.search, folder)])
    trials = _results(trial_pieces(cell.study, folder))
    if search["status"] != DONE:
        raise CannotRun(f"retrieval: {search['error']}")
    chosen = _chosen(cell.study, trials)
    if chosen is None:
        raise CannotRun(f"none of {len(trials)} trials ended well; the first: {trials[0]['error']}")
    settings = cell.settings(chosen)
    header = {
        "command": command_of(settings, f"runs/{cell.name}"),
        **_empty_cell(),
        "tuning": tuning_of(trials, chosen),
        "audit": search["audit"],
    }
    own = search.get("own_indexes") or [None] * len(cell.setting.suite.fusions)
    searched = own[cell.setting.suite.fusions.index(cell.fusion)] or search
    index = {name: searched[name] for name in ("index_bytes", "index_seconds")}
    controls = list(cell.setting.suite.controls)
    return settings, {"header": header, "controls": controls, "seed": cell.seed, "index": index}


def _empty_cell() -> dict[str, Any]:
    return {"main_metric": "", "targets": [], "arms": {}, "costs": {}}


def _fusion_settings(entry: Entry) -> dict[str, Any]:
    return {"fusion": entry.name, **entry.options}


def _results(pieces: Iterable[Piece]) -> list[Mapping[str, Any]]:
    return [result for piece in pieces if (result := read_result(piece.target)) is not None]


def _valid(piece: Piece, redo: bool, stale: dict[str, str]) -> bool:
    """Say whether a piece's file counts; note why it does not."""
    result = read_result(piece.target)
    if result is None:
        return False
    why = why_stale(result, piece.fingerprint)
    if why:
        stale[piece.name] = why
    return not why and not (redo and result["status"] != DONE)
