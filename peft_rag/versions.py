"""Which versions of what decides a result are installed."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

_PACKAGES = ("peft-rag", "torch", "transformers", "peft", "sentence-transformers", "hnswlib")


def versions() -> dict[str, str]:
    """Return the installed versions of what decides a result."""
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
