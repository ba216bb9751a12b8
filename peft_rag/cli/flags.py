"""Flags that are not known in advance: ``--name value``, ``--name=value`` and ``--switch``, names as in a run file."""

from __future__ import annotations

import argparse
from collections.abc import Collection, Sequence

from peft_rag.errors import ConfigError


def read_flags(words: Sequence[str], valued: Collection[str] = ()) -> dict[str, str]:
    """Turn the words of a command line into names and values; dashes and underscores in names are the same.

    >>> read_flags(["--learning-rate", "3e-4", "--method.r=4", "--resume"])
    {'learning_rate': '3e-4', 'method.r': '4', 'resume': 'true'}

    Args:
        words: of the command line.
        valued: names of flags that are no switches, and cannot stand alone.

    Raises:
        ConfigError: a word is neither a flag nor the value of one, a flag lacks its value, or is given twice.
    """
    flags: dict[str, str] = {}
    place = 0
    while place < len(words):
        word = words[place]
        place += 1
        if not word.startswith("--"):
            raise ConfigError(f"'{word}' is neither a flag nor a flag's value. Flags look like --method lora.")
        name, given, value = word.removeprefix("--").partition("=")
        if not given:
            follows = place < len(words) and not words[place].startswith("--")
            value = words[place] if follows else "true"
            place += int(follows)
            if not follows and name.replace("-", "_") in valued:
                raise ConfigError(f"--{name} stands alone, but needs a value behind it.")
        name = name.replace("-", "_")
        if name in flags:
            raise ConfigError(f"--{name} is given twice. Keep one.")
        flags[name] = value
    return flags


def split_part_options(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Take options of parts, ``--retriever.ef 100``, out of a command line, so that no value passes for a folder.

    >>> split_part_options(["kb/", "--retriever.ef", "100", "--k", "3", "--retriever.M=8"])
    (['kb/', '--k', '3'], ['--retriever.ef', '100', '--retriever.M=8'])
    """
    own: list[str] = []
    parts: list[str] = []
    place = 0
    while place < len(words):
        name, given, _ = words[place].partition("=")
        of_part = name.startswith("--") and "." in name
        has_value = of_part and not given and place + 1 < len(words) and not words[place + 1].startswith("--")
        (parts if of_part else own).extend(words[place : place + 1 + has_value])
        place += 1 + has_value
    return own, parts


def flags_of(parser: argparse.ArgumentParser) -> list[str]:
    """Return every flag that a command takes, in all its spellings."""
    return [flag for action in parser._actions for flag in action.option_strings]


def refuse(rest: Sequence[str], known: Sequence[str]) -> None:
    """Raise on words a command does not know, naming the nearest flag."""
    from peft_rag.registry import suggest

    if rest:
        raise ConfigError(f"unknown option '{rest[0]}'.{suggest(rest[0], list(known))}")
