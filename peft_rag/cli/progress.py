"""How the command line talks while it works: plain lines on standard output, libraries' chatter held back."""

from __future__ import annotations

import json
import logging
import os
import warnings
from pathlib import Path
from typing import Any


def say(line: str) -> None:
    """Print a line at once."""
    print(line, flush=True)


def write_result(name: str, value: Any) -> None:
    """Write what was measured as JSON into the file that ``--output`` names.

    Raises:
        ConfigError: it cannot be written.
    """
    write_result_text("--output", name, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_result_text(flag: str, name: str, text: str) -> None:
    """Write text into the file that a flag names.

    Raises:
        ConfigError: it cannot be written.
    """
    from peft_rag.errors import ConfigError
    from peft_rag.files import write_text

    try:
        write_text(Path(name), text)
    except OSError as error:
        raise ConfigError(
            f"{flag} {name} cannot be written ({error.strerror or error}). Name a file in a folder of yours."
        ) from None


def hold_back_chatter() -> None:
    """Silence what libraries say about themselves; called by commands only, never on import."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.filterwarnings("ignore")
    for name in ("transformers", "peft", "datasets", "sentence_transformers", "accelerate"):
        logging.getLogger(name).setLevel(logging.ERROR)
