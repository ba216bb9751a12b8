"""How the command line talks while it works: plain lines on standard output, libraries' chatter held back."""

from __future__ import annotations

import logging
import os
import warnings


def say(line: str) -> None:
    """Print a line at once."""
    print(line, flush=True)


def hold_back_chatter() -> None:
    """Silence what libraries say about themselves; called by commands only, never on import."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.filterwarnings("ignore")
    for name in ("transformers", "peft", "datasets", "sentence_transformers", "accelerate"):
        logging.getLogger(name).setLevel(logging.ERROR)
