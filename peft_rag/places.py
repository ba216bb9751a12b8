"""Where things are kept on this machine."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """Return ``$PEFT_RAG_CACHE``, ``$XDG_CACHE_HOME/peft-rag`` or ``~/.cache/peft-rag``."""
    chosen = os.environ.get("PEFT_RAG_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "peft-rag"
