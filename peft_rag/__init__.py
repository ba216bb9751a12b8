"""peft-rag: train little, retrieve the rest, leave the backbone as it is. Importing this loads nothing heavy."""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "Corpus": "peft_rag.corpus",
    "Document": "peft_rag.corpus",
    "Method": "peft_rag.methods",
    "PeftRagError": "peft_rag.errors",
    "RetrievalAugmentedModel": "peft_rag.model",
    "RunConfig": "peft_rag.config",
    "run": "peft_rag.job",
}

__all__ = ["Corpus", "Document", "Method", "PeftRagError", "RetrievalAugmentedModel", "RunConfig", "run"]


def __getattr__(name: str) -> Any:
    """Import a public name from its home when it is first used."""
    if name not in _HOMES:
        raise AttributeError(f"module 'peft_rag' has no attribute '{name}'")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
