"""Where a run's checkpoints lie until its artefact is whole, and what is left when it is cut off."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from peft_rag.config import RunConfig
from peft_rag.errors import ArtefactError, ConfigError, PeftRagError
from peft_rag.files import refuse_nonempty, write_json


@contextmanager
def working_folder(config: RunConfig, output: Path, *, main: bool) -> Iterator[Path]:
    """Give the folder of checkpoints; it vanishes with the artefact's birth or a user's error, and outlives a kill."""
    named = output if output.name not in ("", "..") else output.resolve()
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
    record = working / "run.json"
    if not working.exists():
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
    differing = sorted(name for name in about if earlier.get(name) != json.loads(json.dumps(about[name])))
    if differing:
        raise ConfigError(
            f"cannot resume '{working}': {', '.join(differing)} differ from the unfinished run. "
            "Resume with the same configuration, or remove that folder to start again."
        )
