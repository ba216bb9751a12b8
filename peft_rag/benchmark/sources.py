"""Where a suite's data lies: variables in paths, what is absent, and a hash of what is there."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peft_rag.benchmark.suite import DataSet
from peft_rag.contents import SOURCES, content_hash
from peft_rag.errors import DataError
from peft_rag.records import SUFFIXES
from peft_rag.slices import split_slice

_PLACES = ("/", "./", "../", "$")
"""What a source begins with that names a place on this machine, and neither demo data nor a data set of the hub."""

_VARIABLE = re.compile(r"\$(?:\{(\w+)\}|(\w+))")


def expand(source: str) -> str:
    """Put the values of ``$NAME`` and ``${NAME}`` into a source.

    Raises:
        DataError: a variable is not set.
    """

    def value(match: re.Match[str]) -> str:
        name = match[1] or match[2]
        if name not in os.environ:
            raise DataError(f"'{source}': the variable {name} is not set. Set it to the folder that holds the data.")
        return os.environ[name]

    return _VARIABLE.sub(value, source)


def expanded(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Put values in place of variables in the sources of a run and in options that begin with one."""
    return {
        name: expand(value) if isinstance(value, str) and (name in SOURCES or value.startswith("$")) else value
        for name, value in settings.items()
    }


def without_places(text: str, sources: dict[str, str]) -> str:
    """Put the variables of sources, and ``~`` for the home folder, back in place of their values in a message."""
    for name in {match[1] or match[2] for source in sources.values() for match in _VARIABLE.finditer(source)}:
        if os.environ.get(name):
            text = text.replace(os.environ[name], f"${{{name}}}")
    home = str(Path.home())
    return text.replace(home, "~") if len(home) > 1 else text


def why_absent(data: DataSet) -> str:
    """Say in one line why a data set cannot be used; an empty string where all of its files are there."""
    for source in data.sources.values():
        try:
            path = Path(split_slice(expand(source))[0])
        except DataError as error:
            return str(error).rstrip(".")
        if path.suffix.lower() in SUFFIXES and not path.is_file():
            return f"there is no file {source}"
        if source.startswith(_PLACES) and not path.exists():
            return f"there is no file or folder {source}"
    return ""


def content_hashes(data: DataSet) -> dict[str, str]:
    """Return a hash of what each split holds; of demo data and hub data sets the name stands for that."""
    return {split: content_hash(expand(source)) for split, source in data.sources.items()}
