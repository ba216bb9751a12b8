"""What a search is asked for: methods and fusions to try, and how many bytes and minutes there are."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from peft_rag.config import RunConfig, from_mapping, override
from peft_rag.errors import ConfigError
from peft_rag.registry import FUSIONS, METHODS, Group, names, suggest

METHODS_TRIED = ("head", "bitfit", "lora", "adapter", "prompt-tuning", "ia3")
FUSIONS_TRIED = ("none", "knn")

_UNITS = {"": 1, "B": 1, "K": 1000, "M": 1000**2, "G": 1000**3}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kKmMgG]?)[bB]?")


@dataclass(frozen=True)
class SearchOptions:
    """What is searched, and with how much.

    Attributes:
        methods: PEFT methods by name.
        fusions: by name; those that train alike share their trainings.
        budget_bytes: largest artefact that may be recommended; 0 for any.
        budget_minutes: for everything, the final run included; 0 for as long as the schedule takes.
        trials: settings tried for each method.
        eta: of what is left, one in so many goes on from a rung to the next, with so many times the steps.
    """

    methods: tuple[str, ...] = METHODS_TRIED
    fusions: tuple[str, ...] = FUSIONS_TRIED
    budget_bytes: int = 0
    budget_minutes: float = 0.0
    trials: int = 3
    eta: int = 3

    def __post_init__(self) -> None:
        """Check names and ranges; nothing is loaded.

        Raises:
            UnknownPluginError: a method or fusion is not installed; the message suggests the nearest.
            ConfigError: a value is out of range.
        """
        _check_names("--methods", self.methods, METHODS)
        _check_names("--fusions", self.fusions, FUSIONS)
        if self.trials < 1:
            raise ConfigError(f"--trials is {self.trials}; each method needs one choice of settings at least.")
        if self.eta < 2:
            raise ConfigError(f"--eta is {self.eta}; at least every second candidate must go, so it is 2 or more.")


def read_options(given: Mapping[str, Any]) -> tuple[SearchOptions, dict[str, Any]]:
    """Take the search's own names out of a run file's and the command line's.

    Returns:
        The options, and the names that are left, which describe a run.

    Raises:
        ConfigError: a budget or number cannot be read.
        UnknownPluginError: a method or fusion is not installed.
    """
    rest = dict(given)
    own = {entry.name: rest.pop(entry.name) for entry in fields(SearchOptions) if entry.name in rest}
    return SearchOptions(
        **{name: _READ[name](f"--{name.replace('_', '-')}", value) for name, value in own.items()}
    ), rest


def run_settings(options: SearchOptions, given: Mapping[str, Any], where: str) -> RunConfig:
    """Make the configuration that every run of a search shares.

    Raises:
        ConfigError: it names a method, or options of one, which is what the search chooses.
    """
    for name in given:
        if name == "method" or name.startswith("method."):
            raise ConfigError(
                f"{where}: '{name}' is what recommend chooses. Name the methods to choose from with --methods, or "
                "train one with peft-rag train."
            )
        if name == "fusion":
            raise ConfigError(f"{where}: 'fusion' is what recommend chooses. Name those to choose from with --fusions.")
    config = from_mapping(given, where=where)
    if config.query_method:
        raise ConfigError(
            f"{where}: recommend searches with a frozen retriever, but query_method is '{config.query_method}'. Leave "
            "it out, and train what is recommended with it (peft-rag train)."
        )
    retrieving = [name for name in options.fusions if name != "none"]
    if config.part_options("fusion") and len(retrieving) != 1:
        raise ConfigError(
            f"{where}: options of a fusion are given, but --fusions names {len(retrieving)} that could take them. "
            "Name one beside none."
        )
    return override(config, fusion=retrieving[0] if retrieving else "none")


def read_size(flag: str, text: Any) -> int:
    """Read a number of bytes.

    >>> read_size("--budget-bytes", "500k"), read_size("--budget-bytes", "2M"), read_size("--budget-bytes", 1500)
    (500000, 2000000, 1500)

    Raises:
        ConfigError: it is no size above 0.
    """
    match = _SIZE.fullmatch(str(text).strip())
    size = int(float(match[1]) * _UNITS[match[2].upper()]) if match else 0
    if size < 1:
        raise ConfigError(f"{flag} is '{text}', no size. Write bytes, or thousands or millions of them: 500k, 2M.")
    return size


def _read_minutes(flag: str, text: Any) -> float:
    try:
        minutes = float(text)
    except (TypeError, ValueError):
        minutes = 0.0
    if not 0 < minutes < float("inf"):
        raise ConfigError(f"{flag} is '{text}', no number of minutes above 0, such as 10 or 2.5.")
    return minutes


def _read_whole(flag: str, text: Any) -> int:
    try:
        return int(str(text))
    except ValueError:
        raise ConfigError(f"{flag} is '{text}', but must be a whole number.") from None


def _read_names(flag: str, given: Any) -> tuple[str, ...]:
    words = given if isinstance(given, (list, tuple)) else str(given).split(",")
    return tuple(dict.fromkeys(str(word).strip() for word in words if str(word).strip()))


def _check_names(flag: str, given: tuple[str, ...], group: Group) -> None:
    known = names(group)
    if not given:
        raise ConfigError(f"{flag} names nothing. Give one {group.noun} at least: {flag} {known[0]},…")
    for name in given:
        if name not in known:
            raise group.unknown(
                f"{flag}: no {group.noun} '{name}'.{suggest(name, known)} Installed: {', '.join(known)} "
                f"(peft-rag {group.command} tells more)."
            )


_READ: dict[str, Callable[[str, Any], Any]] = {
    "methods": _read_names,
    "fusions": _read_names,
    "budget_bytes": read_size,
    "budget_minutes": _read_minutes,
    "trials": _read_whole,
    "eta": _read_whole,
}
