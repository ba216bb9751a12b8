"""Artefacts on the hub, where folders of the machine that trained them are nobody's business."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peft_rag.artefact import save
from peft_rag.artefact_files import CARD, METRICS, PUBLISHED, read_manifest, read_metrics, write_manifest
from peft_rag.backbone_name import BackboneName
from peft_rag.errors import ArtefactError
from peft_rag.files import write_json, write_text

if TYPE_CHECKING:
    from peft_rag.model import RetrievalAugmentedModel

_BASE = "base_model_name_or_path"
_PLACE = re.compile(r"(?:~|[A-Za-z]:)?[/\\].*[^/\\].*", re.DOTALL)


def publish(
    model: RetrievalAugmentedModel,
    repo_id: str,
    *,
    metrics: Mapping[str, Any] | None = None,
    private: bool = False,
) -> str:
    """Push the active adapter's artefact to the hub and return its address.

    Raises:
        ArtefactError: the hub cannot be reached, or refuses.
    """
    with tempfile.TemporaryDirectory() as parent:
        folder = save(model, Path(parent) / "artefact", metrics)
        return publish_folder(folder, repo_id, private=private)


def publish_folder(folder: Path, repo_id: str, *, private: bool = False) -> str:
    """Push a saved artefact to the hub, its own files and nothing else, after checking it; see `public_copy`."""
    from huggingface_hub import HfApi

    with tempfile.TemporaryDirectory() as parent:
        public = public_copy(folder, Path(parent) / "artefact")
        try:
            api = HfApi()
            api.create_repo(repo_id, private=private, exist_ok=True)
            info = api.upload_folder(repo_id=repo_id, folder_path=str(public), allow_patterns=list(PUBLISHED))
        except Exception as error:
            raise ArtefactError(
                f"cannot push to '{repo_id}': {' '.join(str(error).split())[:300].rstrip('.')}. "
                "Check the name, the connection and your token (hf auth login)."
            ) from error
    return str(info)


def public_copy(folder: Path, target: Path) -> Path:
    """Copy an artefact's own files, in which a place on this machine is the name of what lies there, no more.

    ``/home/jane/clients/acme/tickets.jsonl[:500]`` becomes ``tickets.jsonl[:500]``, in the description, in what was
    measured and in the model card; relative places and hub ids stay. Weights are copied as they are.

    Raises:
        ArtefactError: a file of the artefact is missing, truncated or altered.
    """
    manifest, measured = read_manifest(folder), read_metrics(folder)
    places: set[str] = set()
    target.mkdir(parents=True)
    for name in (name for name in PUBLISHED if (folder / name).is_file()):
        (target / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(folder / name, target / name)
    for path in target.rglob("adapter_config.json"):
        about = json.loads(path.read_text(encoding="utf-8"))
        if _is_place(about.get(_BASE)):
            write_json(path, {**about, _BASE: _name(about[_BASE])})
    write_manifest(target, _named(manifest, places))
    if (folder / METRICS).is_file():
        write_json(target / METRICS, _named(measured, places))
    if (folder / CARD).is_file():
        text = (folder / CARD).read_text(encoding="utf-8")
        for place in sorted(places, key=len, reverse=True):
            text = text.replace(place, _name(place))
        write_text(target / CARD, text)
    return target


def _named(value: Any, places: set[str]) -> Any:
    """Return JSON with a name for each place, noting the place; what the parts are set to stays as it is."""
    if isinstance(value, dict):
        return {name: held if name == "settings" else _named(held, places) for name, held in value.items()}
    if isinstance(value, list):
        return [_named(held, places) for held in value]
    if not _is_place(value):
        return value
    places.add(value)
    return _name(value)


def _is_place(value: Any) -> bool:
    return isinstance(value, str) and _PLACE.fullmatch(BackboneName.parse(value).place) is not None


def _name(place: str) -> str:
    """Return how what lies at a place is loaded, and its name."""
    known = BackboneName.parse(place)
    return str(replace(known, place=re.split(r"[/\\]", known.place.rstrip("/\\"))[-1]))
