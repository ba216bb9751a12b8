"""The options of a method: read from its config class, and given by a user as text or as values."""

from __future__ import annotations

import enum
import re
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any, Literal, Union

from peft import PeftConfig

from peft_rag import registry
from peft_rag.errors import ConfigError
from peft_rag.methods.method import Method

_BOOKKEEPING = {
    "auto_mapping",
    "base_model_name_or_path",
    "inference_mode",
    "peft_type",
    "peft_version",
    "revision",
    "runtime_config",
    "task_type",
}
_NAMES = re.compile(r"[\w.-]+(\s*,\s*[\w.-]+)*")
_KEPT = {"all-linear", "dummy-target-modules"}


@dataclass(frozen=True)
class Option:
    """One option of a method.

    Attributes:
        name: as it is written in a run file.
        type: what values it takes, e.g. ``int`` or ``'houlsby' | 'pfeiffer'``.
        default: what it is unless the user says otherwise.
        help: one line.
    """

    name: str
    type: str
    default: Any
    help: str


def method_options(method: Method) -> list[Option]:
    """List the options of a method with the defaults it has here."""
    hints = _hints(method.config_class)
    options = []
    for entry in fields(method.config_class):
        if entry.name in _BOOKKEEPING or not entry.init:
            continue
        default: Any = None
        if entry.default is not MISSING:
            default = entry.default
        elif entry.default_factory is not MISSING:
            default = entry.default_factory()
        default = method.options.get(entry.name, default)
        default = default.value if isinstance(default, enum.Enum) else default
        help_text = " ".join(str(entry.metadata.get("help", "")).split())
        options.append(Option(entry.name, describe_type(hints[entry.name]), default, help_text))
    return options


def build_config(method: Method, name: str, options: Mapping[str, Any]) -> PeftConfig:
    """Make a method's config from its defaults and a user's options.

    Raises:
        ConfigError: an option is unknown or of the wrong type, or the config refuses the values.
    """
    known = [option.name for option in method_options(method)]
    hints = _hints(method.config_class)
    values = dict(method.options)
    for key, value in options.items():
        if key not in known:
            raise ConfigError(
                f"method '{name}' has no option '{key}'.{registry.suggest(key, known)} "
                f"Options: {', '.join(known) or 'none'}."
            )
        values[key] = _coerce_option(name, key, value, hints[key])
    try:
        return method.config_class(**values)
    except (TypeError, ValueError) as error:
        given = ", ".join(f"{key}={value!r}" for key, value in options.items()) or "its defaults"
        raise ConfigError(f"method '{name}' refuses {given}: {_one_line(error)}.") from error


def describe_type(hint: Any) -> str:
    """Write a type as a user would.

    >>> describe_type(Union[int, None]), describe_type(Literal["none", "all"]), describe_type(list[str])
    ('int | none', "'none' | 'all'", 'list of str')
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        return " | ".join(describe_type(argument) for argument in arguments)
    if origin is Literal:
        return " | ".join(map(repr, arguments))
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return " | ".join(repr(member.value) for member in hint)
    if origin in (list, set, tuple):
        return f"list of {describe_type(arguments[0])}" if arguments else "list"
    if hint is type(None):
        return "none"
    return str(getattr(origin or hint, "__name__", hint))


def coerce(value: Any, hint: Any) -> Any:
    """Turn a value, perhaps text from a command line, into the type an option has.

    >>> coerce("8", int), coerce("query, value", list[str]), coerce(1, float), coerce("none", Union[int, None])
    (8, ['query', 'value'], 1.0, None)

    Raises:
        ValueError: the value is of another type.
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (Union, types.UnionType):
        return _coerce_union(value, arguments)
    if origin is Literal:
        for choice in arguments:
            if value == choice and isinstance(value, bool) == isinstance(choice, bool):
                return choice
        raise ValueError
    if origin in (list, set, tuple) or hint in (list, set, tuple):
        return _coerce_list(value, arguments[0] if arguments else Any)
    if origin is dict or hint is dict:
        return _of(value, dict)
    if hint is type(None):
        if value is None or (isinstance(value, str) and value.lower() in {"none", "null"}):
            return None
        raise ValueError
    return _coerce_plain(value, hint)


def _coerce_plain(value: Any, hint: Any) -> Any:
    if hint is bool:
        if isinstance(value, str) and value.lower() in {"true", "false"}:
            return value.lower() == "true"
        return _of(value, bool)
    if hint in (int, float):
        if isinstance(value, bool):
            raise ValueError
        if isinstance(value, str):
            return hint(value)
        return float(_of(value, int | float)) if hint is float else _of(value, int)
    if isinstance(hint, type) and not isinstance(value, hint) and issubclass(hint, enum.Enum):
        return hint(value)
    return _of(value, hint if isinstance(hint, type) else object)


def _coerce_union(value: Any, hints: tuple[Any, ...]) -> Any:
    """Try every member; text for a list of names is a list if it names, and stays text if it is an expression."""
    if isinstance(value, str) and any(typing.get_origin(hint) is list for hint in hints) and str in hints:
        return [name.strip() for name in value.split(",")] if _NAMES.fullmatch(value) and value not in _KEPT else value
    numbers_first = sorted(hints, key=lambda hint: (hint is not type(None), hint is str, hint is float))
    for hint in numbers_first:
        try:
            return coerce(value, hint)
        except (ValueError, TypeError):
            continue
    raise ValueError


def _coerce_list(value: Any, item: Any) -> list[Any]:
    if isinstance(value, str):
        value = [part.strip() for part in value.split(",")]
    return [coerce(part, item) for part in _of(value, list | tuple | set)]


def _of(value: Any, kind: Any) -> Any:
    if not isinstance(value, kind):
        raise ValueError
    return value


def _coerce_option(name: str, key: str, value: Any, hint: Any) -> Any:
    try:
        return coerce(value, hint)
    except (ValueError, TypeError) as error:
        raise ConfigError(
            f"option '{key}' of method '{name}' takes {describe_type(hint)}, not {value!r} ({type(value).__name__})."
        ) from error


def _hints(config_class: type[PeftConfig]) -> dict[str, Any]:
    try:
        return typing.get_type_hints(config_class)
    except (NameError, TypeError):
        return {entry.name: Any for entry in fields(config_class)}


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__
