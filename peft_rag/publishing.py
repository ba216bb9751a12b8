"""Artefacts on the hub."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peft_rag.artefact import save
from peft_rag.artefact_files import PUBLISHED, read_manifest
from peft_rag.errors import ArtefactError

if TYPE_CHECKING:
    from peft_rag.model import RetrievalAugmentedModel


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
    import tempfile

    with tempfile.TemporaryDirectory() as parent:
        folder = save(model, Path(parent) / "artefact", metrics)
        return publish_folder(folder, repo_id, private=private)


def publish_folder(folder: Path, repo_id: str, *, private: bool = False) -> str:
    """Push a saved artefact to the hub, its own files and nothing else, after checking it."""
    from huggingface_hub import HfApi

    read_manifest(folder)
    try:
        api = HfApi()
        api.create_repo(repo_id, private=private, exist_ok=True)
        info = api.upload_folder(repo_id=repo_id, folder_path=str(folder), allow_patterns=list(PUBLISHED))
    except Exception as error:
        raise ArtefactError(
            f"cannot push to '{repo_id}': {' '.join(str(error).split())[:300].rstrip('.')}. "
            "Check the name, the connection and your token (hf auth login)."
        ) from error
    return str(info)
