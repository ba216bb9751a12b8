"""Names to plugins over five entry-point groups: methods, fusions, tasks, retrievers and objectives.

Listing reads installed metadata and the docstrings of the plugins' source files, and imports nothing. A plugin is
imported when it is asked for by name; one that fails to import is reported and does no harm to the others.
"""

from __future__ import annotations

import ast
import difflib
import importlib.util
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from peft_rag.errors import (
    BrokenPluginError,
    DuplicatePluginError,
    UnknownFusionError,
    UnknownMethodError,
    UnknownObjectiveError,
    UnknownPluginError,
    UnknownRetrieverError,
    UnknownTaskError,
)


@dataclass(frozen=True)
class Group:
    """One plug-in point.

    Attributes:
        entry_points: the entry-point group, e.g. ``peft_rag.methods``.
        noun: what one of them is called in messages.
        command: the subcommand that lists them.
        unknown: the error for a name nobody claims.
    """

    entry_points: str
    noun: str
    command: str
    unknown: type[UnknownPluginError]


METHODS = Group("peft_rag.methods", "PEFT method", "methods", UnknownMethodError)
FUSIONS = Group("peft_rag.fusions", "fusion", "fusions", UnknownFusionError)
TASKS = Group("peft_rag.tasks", "task", "tasks", UnknownTaskError)
RETRIEVERS = Group("peft_rag.retrievers", "retriever", "retrievers", UnknownRetrieverError)
OBJECTIVES = Group("peft_rag.objectives", "objective", "objectives", UnknownObjectiveError)
GROUPS = {group.command: group for group in (METHODS, FUSIONS, TASKS, RETRIEVERS, OBJECTIVES)}


@dataclass(frozen=True)
class Plugin:
    """What is known of a plugin without importing it.

    Attributes:
        name: the name a user picks it by.
        distribution: the installed distribution that brings it, with its version.
        target: ``module:attribute`` of the object behind the name.
        summary: the first line of its docstring.
        source: the paper it comes from, as its docstring's ``Source:`` line gives it; empty if none.
        problem: why it cannot be used; empty if nothing is known to be wrong.
    """

    name: str
    distribution: str
    target: str
    summary: str
    source: str
    problem: str


def available(group: Group) -> list[Plugin]:
    """List the plugins of a group by name, broken ones too; nothing is imported.

    Raises:
        DuplicatePluginError: two distributions claim one name.
    """
    return [_describe(entry) for _, entry in sorted(_entries(group).items())]


def names(group: Group) -> list[str]:
    """List the names claimed in a group, sorted."""
    return sorted(_entries(group))


def describe(group: Group, name: str) -> Plugin:
    """Return what is known of one plugin without importing it.

    Raises:
        UnknownPluginError: nobody claims the name.
    """
    return _describe(_find(group, name))


def load(group: Group, name: str) -> Any:
    """Import the plugin behind a name and return the object its entry point names.

    Raises:
        UnknownPluginError: nobody claims the name; the message suggests the nearest.
        DuplicatePluginError: two distributions claim a name of this group.
        BrokenPluginError: importing it failed; the message names plugin, distribution and reason.
    """
    entry = _find(group, name)
    try:
        _check_target(entry)
        return entry.load()
    except (Exception, SystemExit) as error:
        raise BrokenPluginError(
            f"{group.noun} '{name}' of {_distribution(entry)} cannot be loaded from '{entry.value}': "
            f"{type(error).__name__}: {error}. Repair or uninstall that distribution."
        ) from error


def suggest(name: str, known: list[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the nearest known name, or an empty string.

    >>> suggest("lorra", ["adapter", "lora"])
    " Did you mean 'lora'?"
    """
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f" Did you mean '{near[0]}'?" if near else ""


def _find(group: Group, name: str) -> metadata.EntryPoint:
    entries = _entries(group)
    if name not in entries:
        known = sorted(entries)
        raise group.unknown(
            f"no {group.noun} '{name}'.{suggest(name, known)} Installed: {', '.join(known)} "
            f"(peft-rag {group.command} tells more)."
        )
    return entries[name]


def _entries(group: Group) -> dict[str, metadata.EntryPoint]:
    found: dict[str, metadata.EntryPoint] = {}
    for entry in metadata.entry_points(group=group.entry_points):
        other = found.setdefault(entry.name, entry)
        # Reading a distribution's metadata takes milliseconds: only where a name comes twice.
        if other is not entry and (other.value, _distribution(other)) != (entry.value, _distribution(entry)):
            raise DuplicatePluginError(
                f"{group.noun} '{entry.name}' is claimed by both {_distribution(other)} ('{other.value}') and "
                f"{_distribution(entry)} ('{entry.value}'). Uninstall one of them."
            )
    return found


def _distribution(entry: metadata.EntryPoint) -> str:
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist else "an unknown distribution"


def _describe(entry: metadata.EntryPoint) -> Plugin:
    docstring, problem = "", ""
    try:
        _check_target(entry)
        docstring = _docstring(_source_file(entry.module), entry.attr.partition(".")[0])
    except (OSError, SyntaxError, ValueError, ImportError) as error:
        problem = f"{type(error).__name__}: {error}"
    lines = [line.strip() for line in docstring.splitlines()]
    source = next((line.removeprefix("Source:").strip() for line in lines if line.startswith("Source:")), "")
    return Plugin(entry.name, _distribution(entry), entry.value, lines[0] if lines else "", source, problem)


def _check_target(entry: metadata.EntryPoint) -> None:
    if not entry.pattern.match(entry.value) or not entry.attr:
        raise ValueError(f"'{entry.value}' names no object; an entry point looks like 'module:OBJECT'")


def _source_file(module: str) -> Path:
    """Find a module's source without importing it or its parents."""
    top, *rest = module.split(".")
    spec = importlib.util.find_spec(top)
    if spec is None:
        raise ImportError(f"no module named '{top}'")
    if not rest:
        if spec.origin is None:
            raise ImportError(f"'{top}' is a folder without __init__.py")
        return Path(spec.origin)
    for folder in spec.submodule_search_locations or []:
        path = Path(folder).joinpath(*rest)
        for candidate in (path.with_suffix(".py"), path / "__init__.py"):
            if candidate.is_file():
                return candidate
    raise ImportError(f"no module named '{module}'")


def _docstring(path: Path, attribute: str) -> str:
    """Return the docstring of a module's class, function or documented assignment, or else of the module.

    Raises:
        ImportError: nothing in the module can give the attribute.
    """
    if path.suffix != ".py":
        return ""
    tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    for statement, following in zip(tree.body, [*tree.body[1:], None], strict=True):
        if isinstance(statement, (ast.ClassDef, ast.FunctionDef)) and statement.name == attribute:
            return ast.get_docstring(statement) or ast.get_docstring(tree) or ""
        if _assigns(statement, attribute):
            return _string(following) or ast.get_docstring(tree) or ""
    if not any(_may_give(node, attribute) for node in ast.walk(tree)):
        raise ImportError(f"'{path.name}' does not define '{attribute}'")
    return ast.get_docstring(tree) or ""


def _assigns(statement: ast.stmt, attribute: str) -> bool:
    if isinstance(statement, ast.Assign):
        return any(isinstance(target, ast.Name) and target.id == attribute for target in statement.targets)
    return (
        isinstance(statement, ast.AnnAssign)
        and isinstance(statement.target, ast.Name)
        and statement.target.id == attribute
    )


def _may_give(node: ast.AST, attribute: str) -> bool:
    """Say whether a node could bind a name where only running the module would tell: imported, nested or dynamic."""
    if isinstance(node, ast.alias):
        return (node.asname or node.name.partition(".")[0]) in (attribute, "*")
    if isinstance(node, ast.Name):
        return isinstance(node.ctx, ast.Store) and node.id == attribute
    return isinstance(node, (ast.ClassDef, ast.FunctionDef)) and node.name in (attribute, "__getattr__")


def _string(statement: ast.stmt | None) -> str:
    if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
        value = statement.value.value
        return value.strip() if isinstance(value, str) else ""
    return ""
