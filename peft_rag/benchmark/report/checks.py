"""What must be said beside a result set: failures, gaps, and cells that were not made alike."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable

from peft_rag.benchmark.report.cells import DONE, Cell
from peft_rag.benchmark.report.machines import machine_names, machine_of
from peft_rag.benchmark.report.results import Results

_SHOWN = 3
_SHORT_COMMIT = 10


def notices(results: Results) -> list[str]:
    """Return one sentence for each thing that a reader of the tables must know; none where all is alike and done."""
    cells = results.cells
    names = machine_names(cells)
    found = [
        _listed(f"runs {status}", [cell.name for cell in cells if cell.status == status])
        for status in sorted({cell.status for cell in cells} - {DONE})
    ]
    found += [
        _listed("missing rows or seeds", results.missing),
        _listed("cells made with uncommitted changes in the sources", [cell.name for cell in cells if cell.dirty]),
        _mixed("Commits", cells, lambda cell: cell.commit[:_SHORT_COMMIT] or "none"),
        _mixed("Machines", cells, lambda cell: f"{names.get(machine_of(cell), '')} {machine_of(cell)}".strip()),
        _differing("sources", cells, lambda cell: cell.sources.items()),
        _differing("versions", [cell for cell in cells if not cell.external], lambda cell: cell.versions.items()),
        *_unlike(results),
        _listed(
            "cells whose backbone is not as it was, with its adapter off",
            [cell.name for cell in cells if cell.costs.get("off_difference")],
        ),
    ]
    return [sentence for sentence in found if sentence]


def _listed(what: str, names: list[str]) -> str:
    if not names:
        return ""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{what[0].upper()}{what[1:]}, {len(names)}: {'; '.join(names[:_SHOWN])}{more}."


def _mixed(what: str, cells: Iterable[Cell], value: Callable[[Cell], str]) -> str:
    """Say that a property has several values, and how many cells each has."""
    counts: dict[str, int] = defaultdict(int)
    for cell in cells:
        counts[value(cell)] += 1
    if len(counts) < 2:
        return ""
    shown = ", ".join(f"{name} ({count} cell{'s' * (count > 1)})" for name, count in counts.items())
    return f"{what} differ: {shown}."


def _differing(what: str, cells: Iterable[Cell], items: Callable[[Cell], Iterable[tuple[str, str]]]) -> str:
    """Say which of many named values are not the same in all cells that have them."""
    values: dict[str, set[str]] = defaultdict(set)
    for cell in cells:
        for name, value in items(cell):
            values[name].add(value)
    differing = sorted(name for name, seen in values.items() if len(seen) > 1)
    return _listed(f"{what} differ between cells", differing)


def _unlike(results: Results) -> list[str]:
    """Say within which settings cells had other data or options, or rows other numbers of steps or trials."""
    found = []
    for setting in results.settings:
        name = results.label(setting)
        done = [cell for cell in results.within(setting) if cell.status == DONE]
        cells = [cell for cell in done if not cell.external]
        known = [cell for cell in done if cell.setting_fingerprint]
        found.append(_mixed(f"{name}: the suite's options or the data", known, _short))
        found.append(_mixed(f"{name}: training steps", cells, _steps))
        found.append(_mixed(f"{name}: numbers of trials", cells, lambda cell: str(cell.trials)))
        found.append(_listed(f"{name}: methods with other settings from cell to cell", _unsteady(cells)))
    return found


def _unsteady(cells: Iterable[Cell]) -> list[str]:
    """Name methods whose trials have chosen one thing for some cells and another for others."""
    chosen: dict[str, set[str]] = defaultdict(set)
    for cell in cells:
        chosen[cell.method].add(", ".join(f"{name} {value}" for name, value in sorted(cell.chosen.items())))
    return [f"{method} ({' or '.join(sorted(several))})" for method, several in chosen.items() if len(several) > 1]


def _short(cell: Cell) -> str:
    return cell.setting_fingerprint.removeprefix("sha256:")[:_SHORT_COMMIT]


def _steps(cell: Cell) -> str:
    return str(cell.costs.get("steps", "unknown"))
