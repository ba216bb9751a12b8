"""``peft-rag methods | fusions | tasks | retrievers | objectives``: what can be picked by name."""

from __future__ import annotations

import argparse
import inspect
import sys
from collections.abc import Iterable, Sequence
from dataclasses import MISSING, fields, is_dataclass
from typing import Any

from peft_rag.cli.columns import columns
from peft_rag.cli.flags import refuse
from peft_rag.registry import GROUPS, METHODS, Group, available, describe, load


def add_to(commands: Any) -> None:
    """Add one command a plug-in point."""
    for group in GROUPS.values():
        parser = commands.add_parser(
            group.command,
            help=f"list every {group.noun}, or one with its options",
            description=f"List every {group.noun} that is installed, or one with its options, types and defaults.",
        )
        parser.add_argument("name", nargs="?", help="show the options of this one")
        parser.set_defaults(run=_run, group=group)


def _run(known: argparse.Namespace, rest: Sequence[str]) -> None:
    refuse(rest, ["--help"])
    group: Group = known.group
    if known.name:
        _show(group, known.name)
        return
    plugins = available(group)
    for line in columns(
        ("name", "distribution", "what it does", "source"),
        [(plugin.name, plugin.distribution, plugin.summary, plugin.source) for plugin in plugins if not plugin.problem],
    ):
        print(line)
    for plugin in plugins:
        if plugin.problem:
            print(f"skipped {plugin.name} of {plugin.distribution}: {plugin.problem}", file=sys.stderr)


def _show(group: Group, name: str) -> None:
    plugin = describe(group, name)
    loaded = load(group, name)
    print(f"{plugin.name}: {plugin.summary}")
    print(f"from {plugin.distribution} ({plugin.target})")
    if plugin.source:
        print(f"source: {plugin.source}")
    for promise, reason in getattr(loaded, "limits", {}).items():
        print(f"does not hold: {promise} ({reason})")
    options = list(_method_options(name) if group is METHODS else _options(loaded))
    print()
    if not options:
        print("no options")
    part = group.command.removesuffix("s")
    for line in columns(
        ("option", "type", "default", "meaning"),
        [(f"--{part}.{option[0]}", *option[1:]) for option in options],
    ):
        print(line)


def _method_options(name: str) -> Iterable[tuple[str, str, str, str]]:
    from peft_rag.methods import method_options, resolve

    for option in method_options(resolve(name)):
        yield option.name, str(option.type), repr(option.default), " ".join(str(option.help).split())


def _options(plugin: Any) -> Iterable[tuple[str, str, str, str]]:
    """Yield the options of a frozen dataclass, or of a class's constructor, with what its docstring says of each."""
    meanings = _attributes(inspect.getdoc(plugin) or "")
    if is_dataclass(plugin):
        for entry in fields(plugin):
            if entry.name not in ("labels", "multi_label"):
                default = "" if entry.default is MISSING else repr(entry.default)
                yield entry.name, str(entry.type), default, meanings.get(entry.name, "")
        return
    meanings |= _attributes(inspect.getdoc(plugin.__init__) or "")
    for parameter in inspect.signature(plugin).parameters.values():
        if parameter.name != "encoder":
            yield (
                parameter.name,
                str(parameter.annotation),
                repr(parameter.default),
                meanings.get(parameter.name, ""),
            )


def _attributes(docstring: str) -> dict[str, str]:
    """Read ``name: meaning`` lines, and their continuations, from a docstring's Attributes or Args."""
    meanings: dict[str, str] = {}
    inside, name, indent = False, "", 0
    for line in docstring.splitlines():
        depth = len(line) - len(line.lstrip())
        if line.strip() in ("Attributes:", "Args:"):
            inside, indent = True, depth
        elif inside and line.strip() and depth <= indent:
            inside = False
        elif inside and line.strip():
            head, found, rest = line.strip().partition(": ")
            if found and depth == indent + 4 and " " not in head:
                name, meanings[head] = head, rest
            elif name:
                meanings[name] += " " + line.strip()
    return meanings
