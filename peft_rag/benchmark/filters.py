"""Some cells of a suite: ``--only method=lora,seed=0``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from peft_rag.errors import ConfigError, DataError
from peft_rag.registry import suggest

if TYPE_CHECKING:
    from peft_rag.benchmark.plan import Cell

FILTERS = ("dataset", "shots", "backbone", "method", "fusion", "seed")


def read_filter(text: str) -> dict[str, frozenset[str]]:
    """Read ``method=lora,dataset=wiki-topics``; a name given twice takes either value.

    >>> sorted(read_filter("method=lora,method=head,seed=0")["method"])
    ['head', 'lora']

    Raises:
        ConfigError: a name is unknown, or a pair has no value.
    """
    wanted: dict[str, frozenset[str]] = {}
    for pair in text.split(",") if text else ():
        name, _, value = pair.partition("=")
        if name not in FILTERS or not value:
            raise ConfigError(
                f"--only '{pair}' is no filter.{suggest(name, list(FILTERS))} Write NAME=VALUE, separated by commas, "
                f"with a name of: {', '.join(FILTERS)}."
            )
        wanted[name] = wanted.get(name, frozenset()) | {value}
    return wanted


def passing(cells: Sequence[Cell], only: Mapping[str, frozenset[str]], absent: Mapping[str, str]) -> list[Cell]:
    """Return the cells that have a wanted value of every filter.

    Args:
        cells: of the suite, at least one.
        only: wanted values by filter.
        absent: why a data set has no cell, by its name.

    Raises:
        DataError: a data set asked for is absent.
        ConfigError: the suite has no such value, or no cell has all of them.
    """
    for name, values in only.items():
        known = list(dict.fromkeys(value for cell in cells for value in _values(cell, name)))
        for value in sorted(values.difference(known)):
            if name == "dataset" and value in absent:
                raise DataError(f"data set '{value}' is absent: {absent[value]}.")
            raise ConfigError(
                f"--only '{name}={value}': the suite has no such {name}.{suggest(value, known)} "
                f"It has {', '.join(known)}."
            )
    chosen = [cell for cell in cells if all(values & set(_values(cell, name)) for name, values in only.items())]
    if not chosen:
        raise ConfigError("no cell of the suite has all values of --only. --dry-run without it lists all cells.")
    return chosen


def _values(cell: Cell, name: str) -> Iterable[str]:
    """Return what a cell answers to: one value, or its fusion and those whose rows it holds too."""
    return (cell.fusion.label, *cell.covers) if name == "fusion" else (str(cell.key[name]),)
