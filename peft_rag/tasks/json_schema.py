"""A JSON schema that a written text must keep to: how it is named, read, and checked for what writes by it."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peft_rag.errors import ConfigError

JSON_SCHEMA = "json_schema"
"""The way of decoding that names one."""


def read_schema(given: Any) -> dict[str, Any]:
    """Return a JSON schema that is given as itself or as the file that holds it.

    Raises:
        ConfigError: the file cannot be read, or holds no JSON object; or what writes by a schema is not installed.
    """
    if importlib.util.find_spec("llguidance") is None:
        raise ConfigError(
            "decoding.json_schema needs llguidance, which is not installed. Run: pip install 'peft-rag[schema]', or "
            "leave it out."
        )
    if isinstance(given, Mapping):
        return dict(given)
    try:
        schema = json.loads(Path(str(given)).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"decoding.json_schema '{given}' cannot be read ({error.strerror}). Name a file that holds a JSON schema."
        ) from None
    except ValueError as error:
        raise ConfigError(f"decoding.json_schema '{given}' is not JSON ({error}). Repair it.") from None
    if not isinstance(schema, dict):
        raise ConfigError(
            f"decoding.json_schema '{given}' holds no object. Write a JSON schema such as "
            '{"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}.'
        )
    return schema
