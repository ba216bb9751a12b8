"""Make a part that was picked by name of the options given for it; an unknown option is an error."""

from __future__ import annotations

import inspect
import sys
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from peft_rag.errors import ConfigError
from peft_rag.registry import suggest


def make_part(plugin: Any, part: str, options: Mapping[str, Any], *fixed: Any) -> Any:
    """Make a task, fusion or retriever of its options.

    Args:
        plugin: its class.
        part: what it is, for messages: ``task``, ``fusion`` or ``retriever``.
        options: keyword arguments of its constructor.
        fixed: arguments that come before them and are no options.

    Raises:
        ConfigError: an option is unknown, and the message suggests the nearest; or a value has the wrong type.
    """
    known = dict(list(inspect.signature(plugin).parameters.items())[len(fixed) :])
    check_options(part, options, list(known))
    for name, value in options.items():
        hint = _hint(plugin, known[name].annotation)
        if not _fits(value, hint):
            wanted = inspect.formatannotation(hint).replace("typing.", "")
            raise ConfigError(
                f"{part} refuses {name}={value!r}: it must be {wanted}. peft-rag {part}s tells each option's type."
            )
    try:
        return plugin(*fixed, **options)
    except TypeError as error:
        given = ", ".join(f"{name}={value!r}" for name, value in options.items())
        raise ConfigError(f"{part} refuses {given}: {error}. peft-rag {part}s tells each option's type.") from error


def check_options(part: str, options: Mapping[str, Any], known: Sequence[str]) -> None:
    """Raise on an option that is not known, naming the nearest."""
    for name in options:
        if name not in known:
            raise ConfigError(
                f"unknown option '{part}.{name}'.{suggest(name, list(known))} Options: {', '.join(known) or 'none'} "
                f"(peft-rag {part}s tells more)."
            )


def _hint(plugin: Any, annotation: Any) -> Any:
    """Return the type a parameter is annotated with; Any where it has none, or one that cannot be evaluated."""
    if annotation is inspect.Parameter.empty:
        return Any
    holder = type("_", (), {"__annotations__": {"option": annotation}})
    try:
        return typing.get_type_hints(holder, vars(sys.modules[plugin.__module__]))["option"]
    except (NameError, TypeError, KeyError):
        return Any


def _fits(value: Any, hint: Any) -> bool:
    """Say whether a value is of a plain type, or of a choice of them; any other type is left to the plugin."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, argument) for argument in arguments)
    if origin is typing.Literal:
        return value in arguments
    if hint in (int, float, str):
        return isinstance(value, (int, float) if hint is float else hint) and not isinstance(value, bool)
    return isinstance(value, hint) if hint in (bool, type(None)) else True
