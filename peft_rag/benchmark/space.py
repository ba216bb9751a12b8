"""What is tried for a method: its learning rate and one knob of its own, the same number of trials for every method."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from peft_rag.benchmark.suite import Entry
from peft_rag.errors import ConfigError
from peft_rag.files import sha256_of_json

if TYPE_CHECKING:
    from peft_rag.methods import Method

Settings = dict[str, Any]
Space = Mapping[str, Sequence[Any]]

_RATES = (1.0, 1 / 3, 3.0)
_SIZES = (
    "r",
    "rank",
    "reduction_factor",
    "num_virtual_tokens",
    "adapter_len",
    "n_frequency",
    "block_size",
    "oft_block_size",
    "boft_block_size",
    "group_size",
)
_DECAY = (0.01, 0.0, 0.1)


def search_space(entry: Entry) -> dict[str, tuple[Any, ...]]:
    """Return what is tried for a row, by names of a run file; the first value of each axis is the default.

    What the suite names is tried as it says. The rest is: the method's default learning rate, a third and three times
    of it, rounded to two digits; and one knob: what the method itself names (`Method.search`), or its size (rank,
    reduction factor, virtual tokens, …) at its default, half and twice of it, or, where a method has neither, weight
    decay. A name that the row's options fix is not searched.

    Raises:
        UnknownMethodError: no such method is installed.
    """
    from peft_rag.methods import resolve

    method = resolve(entry.name)
    axes = {"learning_rate": tuple(float(f"{method.learning_rate * factor:.2g}") for factor in _RATES)}
    given = {name: tuple(values) for name, values in entry.search.items()}
    if not any(name != "learning_rate" for name in given):
        axes |= _knob(method, entry)
    return {name: values for name, values in (axes | given).items() if name not in entry.options}


def trial_points(space: Space, count: int) -> list[Settings]:
    """Return the settings of ``count`` trials: the defaults, then points that use every value about equally often.

    Each further point is, of those not yet taken, the one whose values were used least so far; among equals a hash
    decides, so that learning rate and knob are not moved in step. The same space always gives the same points.

    Raises:
        ConfigError: the space has fewer points.
    """
    names = list(space)
    grid = [dict(zip(names, values, strict=True)) for values in itertools.product(*space.values())]
    if len(grid) < count:
        raise ConfigError(
            f"{count} trials are asked for, but {' × '.join(names) or 'an empty space'} has {len(grid)} settings. "
            "Lower budget.trials or give more values under 'search'."
        )
    chosen = [grid.pop(0)]
    used: Counter[tuple[str, str]] = Counter(_uses(chosen[0]))
    while len(chosen) < count:
        best = min(grid, key=lambda point: (sum(used[use] for use in _uses(point)), sha256_of_json(point)))
        grid.remove(best)
        chosen.append(best)
        used.update(_uses(best))
    return chosen


def _knob(method: Method, entry: Entry) -> dict[str, tuple[Any, ...]]:
    from peft_rag.methods.options import method_options

    if method.search:
        return {f"method.{name}": tuple(values) for name, values in method.search.items()}
    defaults = {option.name: option.default for option in method_options(method)}
    for name in _SIZES:
        size = defaults.get(name)
        free = f"method.{name}" not in entry.options
        if free and isinstance(size, (int, float)) and not isinstance(size, bool) and size >= 2:
            return {f"method.{name}": (size, size // 2, size * 2)}
    return {"weight_decay": _DECAY}


def _uses(point: Settings) -> list[tuple[str, str]]:
    return [(name, repr(value)) for name, value in point.items()]
