"""The files of an artefact: which there are, what the manifest says of them, and that none is another."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from peft_rag.errors import ArtefactError
from peft_rag.files import sha256_of_file, sha256_of_json, write_json

FORMAT = 1
MANIFEST = "peft_rag.json"
METRICS = "metrics.json"
CARD = "README.md"
TOWER = "query_tower"
_ADAPTER = ("adapter_config.json", "adapter_model.safetensors")
_HASHED = (*_ADAPTER, "head.safetensors")
_HASHED_TOWER = tuple(f"{TOWER}/{name}" for name in _ADAPTER)
PUBLISHED = (*_HASHED, *_HASHED_TOWER, MANIFEST, METRICS, CARD)
_PICKLES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib"}  # refused unread
_SEAL = "sha256"
_NAMED = {"name": str, "settings": dict}
_SHAPE = {
    "task": _NAMED,
    "fusion": _NAMED,
    "method": {"name": str, "matched": list, "trainable_parameters": int, "total_parameters": int},
    "backbone": {"name": str, "fingerprint": str, "max_length": int},
}
_KNOWLEDGE = {
    "knowledge": {
        "corpus": {"source": str, "fingerprint": str, "documents": int},
        "retriever": {"name": str, "encoder": str, "options": dict, "fingerprint": str},
    }
}
_COPY = "Copy the artefact again from where it was saved."


def write_manifest(folder: Path, about: Mapping[str, Any]) -> dict[str, Any]:
    """Write what an artefact says of itself, with the hash of every file and, last, of all this; return it."""
    manifest: dict[str, Any] = json.loads(json.dumps(about))
    manifest.pop(_SEAL, None)
    manifest["files"] = {name: sha256_of_file(folder / name) for name in _hashed(manifest)}
    manifest[_SEAL] = sha256_of_json(manifest)
    write_json(folder / MANIFEST, manifest)
    return manifest


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read an artefact's description and check it and every file against it, before anything is loaded.

    Raises:
        ArtefactError: a file is missing, truncated or altered, a pickle (refused unread), or the format is another.
    """
    _refuse_pickles(folder)
    path = folder / MANIFEST
    if not path.is_file():
        raise ArtefactError(f"'{folder}' is no artefact: {MANIFEST} is missing. Name the folder that --output made.")
    try:
        manifest: dict[str, Any] = dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ArtefactError(f"{path} is damaged: {error}. {_COPY}") from None
    _check_manifest(path, manifest)
    for name, expected in manifest["files"].items():
        if not (folder / name).is_file():
            raise ArtefactError(f"'{folder}' misses {name}. {_COPY}")
        actual = sha256_of_file(folder / name)
        if actual != expected:
            raise ArtefactError(
                f"{folder / name} was truncated or altered: it is {actual[:19]}…, but {MANIFEST} says "
                f"{str(expected)[:19]}…. {_COPY}"
            )
    return manifest


def read_metrics(folder: Path) -> dict[str, Any]:
    """Read what was measured of an artefact; nothing where that is not there, or is no table of names."""
    try:
        found = json.loads((folder / METRICS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def artefact_bytes(folder: Path) -> int:
    """Return the bytes of what is loaded: every file that the manifest names, and the manifest."""
    names = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
    return sum((folder / name).stat().st_size for name in (*names, MANIFEST))


def _refuse_pickles(folder: Path) -> None:
    looked_into = (folder, folder / TOWER)
    pickles = sorted(path.name for place in looked_into for path in place.glob("*") if path.suffix in _PICKLES)
    if pickles:
        raise ArtefactError(
            f"'{folder}' holds {pickles[0]}, a pickle, refused because it can run code when read. "
            "peft-rag reads safetensors and JSON only: remove it, or save the artefact again with save_pretrained."
        )


def _check_manifest(path: Path, manifest: Mapping[str, Any]) -> None:
    """Raise where a manifest is of another format, lacks something, or is not what was written."""
    if manifest.get("format") != FORMAT:
        versions = manifest.get("versions")
        writer = versions.get("peft-rag") if isinstance(versions, dict) else None
        raise ArtefactError(
            f"{path} has another format (found {manifest.get('format')!r}, this version reads {FORMAT}). "
            f"Load it with the peft-rag that saved it ({writer or 'unknown'})."
        )
    knowledge = _KNOWLEDGE if manifest.get("knowledge", {}) is not None else {}
    hashed = dict.fromkeys(_hashed(manifest), str)
    wrong = list(_misshapen(manifest, {**_SHAPE, **knowledge, "files": hashed}))
    wrong = wrong or [f"files.{name}" for name in manifest["files"] if name not in hashed]
    if wrong:
        raise ArtefactError(f"{path} was altered: {wrong[0]} is not as it is saved. {_COPY}")
    # Artefacts of before the manifest was sealed have no hash of it.
    seal = sha256_of_json({name: value for name, value in manifest.items() if name != _SEAL})
    if manifest.get(_SEAL, seal) != seal:
        raise ArtefactError(f"{path} was altered since it was saved: it is not what its hash says. {_COPY}")


def _misshapen(found: Any, shape: Mapping[str, Any], under: str = "") -> Iterator[str]:
    """Name what lacks a field of a shape, or has one of another type."""
    for name, kind in shape.items():
        value = found.get(name) if isinstance(found, dict) else None
        if isinstance(kind, dict):
            yield from _misshapen(value, kind, f"{under}{name}.")
        elif not isinstance(value, kind):
            yield f"{under}{name}"


def _hashed(manifest: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the files that must be there, unaltered."""
    return (*_HASHED, *_HASHED_TOWER) if manifest.get(TOWER) else _HASHED
