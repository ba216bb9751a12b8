"""Numbers that count something."""

from __future__ import annotations

from typing import Any

from peft_rag.errors import ConfigError


def check_count(what: str, value: Any, least: int) -> None:
    """Raise `ConfigError` unless a value is a whole number of at least ``least``; true and false are none."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"{what} must be a whole number of at least {least}, but is {value!r}.")
