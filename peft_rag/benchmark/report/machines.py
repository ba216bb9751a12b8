"""Which machine a row's costs were measured on, where a result set rests on several."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from peft_rag.benchmark.report.cells import Cell
from peft_rag.benchmark.report.results import Row


def machine_of(cell: Cell) -> str:
    """Describe the machine that a cell was run on: processor, cores and accelerator."""
    machine = cell.machine
    cores = machine.get("cores", "?")
    device = "" if machine.get("device", "cpu") == "cpu" else f", {machine['device']}"
    return f"{machine.get('processor', 'unknown')}, {cores} core{'s' * (cores != 1)}{device}"


def machine_names(cells: Iterable[Cell]) -> dict[str, str]:
    """Return a short name for each machine, #1 for the one with most cells; none where all cells share one."""
    counts = Counter(machine_of(cell) for cell in cells)
    return {one: f"#{place}" for place, (one, _) in enumerate(counts.most_common(), 1)} if len(counts) > 1 else {}


def machines_of(row: Row, names: Mapping[str, str]) -> tuple[str, ...]:
    """Return the names of the machines that a row's finished runs were made on.

    Args:
        row: of a result set.
        names: of that set's machines.
    """
    return tuple(sorted({names[machine_of(row.cells[seed])] for seed in row.done})) if names else ()
