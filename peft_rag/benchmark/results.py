"""The file of a cell: its content, and whether it still says what the suite and the code would say now."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from peft_rag.benchmark.provenance import changed_sources
from peft_rag.errors import ArtefactError
from peft_rag.files import write_text

DONE, FAILED, DIVERGED = "done", "failed", "diverged"


def finished(
    header: Mapping[str, Any],
    status: str,
    error: str,
    made: Mapping[str, Any],
    seconds: float,
    facts: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the content of a file in the order a person reads it.

    Args:
        header: what the piece is: format, suite, fingerprint, cell, command, …
        status: ``done``, ``failed`` or ``diverged``.
        error: one line where it is not done.
        made: commit, machine, versions, sources, start.
        seconds: the whole piece took.
        facts: what it found.
    """
    return {**header, "status": status, "error": error, **made, "seconds": seconds, **facts}


def read_result(path: Path) -> dict[str, Any] | None:
    """Read a file that a piece wrote; None where there is none.

    Raises:
        ArtefactError: it is no JSON object with a status; files are written whole, so someone else wrote it.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (ValueError, OSError) as error:
        raise ArtefactError(f"'{path}' cannot be read ({error}). Remove it, and its cell is run again.") from None
    if not isinstance(content, dict) or content.get("status") not in (DONE, FAILED, DIVERGED):
        raise ArtefactError(f"'{path}' is no result of a benchmark. Remove it, and its cell is run again.")
    return content


def write_result(path: Path, result: Mapping[str, Any]) -> None:
    """Write a piece's file, whole or not at all; one key a line keeps its thousands of numbers out of the way."""
    lines = (f"{json.dumps(name)}: {json.dumps(value, ensure_ascii=False)}" for name, value in result.items())
    write_text(path, "{\n" + ",\n".join(lines) + "\n}\n")


def why_stale(result: Mapping[str, Any], fingerprint: str) -> str:
    """Say why a result does not count any more; an empty string where it does.

    It counts while everything in the suite that decides it is as it was, and every source file it was made with too.
    """
    if result.get("suite_fingerprint") != fingerprint:
        return "the suite or its data changed"
    changed = changed_sources(result.get("sources", {}))
    if changed:
        return f"the code changed ({', '.join(changed[:3])}{', …' if len(changed) > 3 else ''})"
    return ""


def choose(trials: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Return the settings of the best trial by the main metric on validation, then by loss; None where none is done.

    Among equals the first is taken, which is the defaults or nearest to them.
    """
    best: tuple[float, float] | None = None
    chosen = None
    for trial in trials:
        if trial["status"] != DONE:
            continue
        merit = (trial["validation"][trial["main_metric"]], -trial["validation"]["loss"])
        if best is None or merit > best:
            best, chosen = merit, dict(trial["settings"])
    return chosen


def tuning_of(trials: Sequence[Mapping[str, Any]], chosen: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return what a cell's file says of its trials and of the settings taken."""
    listed = [
        {
            "settings": trial["settings"],
            "validation": trial.get("validation", {}),
            "status": trial["status"],
            **({"error": trial["error"]} if trial["error"] else {}),
        }
        for trial in trials
    ]
    return {"trials": listed, "chosen": chosen}


def write_failure(path: Path, header: Mapping[str, Any], error: str, made: Mapping[str, Any], seconds: float) -> None:
    """Write the file of a piece whose process left none."""
    write_result(path, finished(header, FAILED, error, made, seconds, {}))
