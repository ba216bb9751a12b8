"""Where a run's checkpoints lie until its artefact is whole, and what is left when it is cut off."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from peft_rag.config import RunConfig
from peft_rag.contents import SOURCES, content_hash, held_by
from peft_rag.errors import ArtefactError, ConfigError, PeftRagError
from peft_rag.files import making, refuse_nonempty, write_json

_HELD = "content_hashes"


@contextmanager
def working_folder(config: RunConfig, output: Path, *, main: bool) -> Iterator[Path]:
    """Give the folder of checkpoints; it vanishes with the artefact's birth or a user's error, and outlives a kill."""
    named = output.resolve() if output.is_symlink() or output.name in ("", "..") else output
    working = named.with_name(named.name + ".partial")
    if main:
        refuse_nonempty(output)
        _claim(config, working)
    try:
        yield working
    except PeftRagError:
        if main and not config.resume:
            shutil.rmtree(working, ignore_errors=True)
        raise
    if main:
        shutil.rmtree(working, ignore_errors=True)


def _claim(config: RunConfig, working: Path) -> None:
    about = {name: value for name, value in config.to_dict().items() if name != "resume"}
    about[_HELD] = {name: content_hash(about[name]) for name in SOURCES if about.get(name)} | held_by(about)
    record = working / "run.json"
    if not working.exists():
        with making(Path(config.output)):
            write_json(record, about)
        return
    if not config.resume:
        raise ArtefactError(
            f"'{working}' holds an unfinished run. Go on with it by --resume, or remove that folder to start again."
        )
    try:
        earlier = json.loads(record.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        earlier = None
    earlier = earlier if isinstance(earlier, dict) else {}
    differing = _differing(earlier, json.loads(json.dumps(about)))
    if differing:
        raise ConfigError(
            f"cannot resume '{working}': {', '.join(differing)} changed since it was interrupted. "
            "Resume with the same configuration and data, or remove that folder to start again."
        )


def _differing(earlier: Mapping[str, Any], now: dict[str, Any]) -> list[str]:
    """Name the settings that are others now, and the data of the same name that has changed."""
    held, before = now.pop(_HELD), earlier.get(_HELD)
    differing = sorted(name for name in now if earlier.get(name) != now[name])
    if isinstance(before, dict):  # runs of earlier versions did not note it
        changed = [name for name in held if before.get(name) != held[name]]
        differing += [
            f"what {name} names" if name not in SOURCES else f"the content of {now[name]}" for name in changed
        ]
    return differing
