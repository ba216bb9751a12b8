"""What every saved index says of its retriever and encoder, and the checks before it is used again."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

from peft_rag.errors import FingerprintError, RetrievalError
from peft_rag.retrieval.base import Encoder, Retriever
from peft_rag.retrieval.storage import read_manifest

Kind = TypeVar("Kind", bound=Retriever)


def manifest_of(retriever: type[Retriever], folder: Path, format_number: int) -> dict[str, Any]:
    """Return the manifest of an index that this retriever saved in this format, its files checked.

    Raises:
        RetrievalError: the folder holds no index, a damaged one, another retriever's, or another format.
    """
    manifest = read_manifest(folder)
    if (manifest.get("retriever"), manifest.get("format")) != (retriever.name, format_number):
        raise RetrievalError(
            f"'{folder}' holds an index of the retriever '{manifest.get('retriever')}', format "
            f"{manifest.get('format')}, not of '{retriever.name}', format {format_number}. Build it anew."
        )
    return manifest


def about_index(retriever: Retriever, format_number: int, encoder: Encoder | None = None) -> dict[str, Any]:
    """Return what every saved index says of itself; of its encoder too where it is given one."""
    about = {
        "format": format_number,
        "retriever": retriever.name,
        "settings": retriever.settings(),
        "corpus_fingerprint": retriever.corpus_fingerprint,
    }
    return about if encoder is None else about | about_encoder(retriever, encoder)


def opened(kind: type[Kind], folder: Path, format_number: int, encoder: Encoder | None) -> Kind:
    """Return a retriever with the settings, the encoder and the corpus of a saved index, whose files are checked.

    Args:
        kind: made of an encoder and its settings.
        folder: the index.
        format_number: that the retriever saves.
        encoder: the encoder it was built with; loaded by its recorded name if None.

    Raises:
        RetrievalError: as `manifest_of`.
        FingerprintError: as `check_encoder`.
    """
    manifest = manifest_of(kind, folder, format_number)
    used = encoder or recorded_encoder(manifest)
    retriever = kind(used, **manifest["settings"])  # type: ignore[call-arg]
    check_encoder(retriever, used, manifest, folder)
    retriever.corpus_fingerprint = manifest["corpus_fingerprint"]
    return retriever


def about_encoder(retriever: Retriever, encoder: Encoder) -> dict[str, Any]:
    """Return what a saved index says of its encoder, which is loaded only if the retriever uses it."""
    fingerprint = retriever.encoder_fingerprint()
    return {
        "encoder": getattr(encoder, "name", None),
        "revision": getattr(encoder, "revision", None) if fingerprint else None,
        "encoder_fingerprint": fingerprint,
        "max_length": getattr(encoder, "max_length", None),
    }


def recorded_encoder(manifest: dict[str, Any]) -> Encoder:
    """Return the sentence encoder that an index names."""
    from peft_rag.retrieval.encoder import SentenceEncoder, recorded_name

    name = recorded_name(manifest["encoder"], manifest.get("revision"))
    return SentenceEncoder(name, max_length=manifest["max_length"])


def check_encoder(retriever: Retriever, encoder: Encoder, manifest: dict[str, Any], folder: Path) -> None:
    """Raise `FingerprintError` when a retriever's encoder is not the one an index was built with."""
    expected, found = manifest["encoder_fingerprint"], retriever.encoder_fingerprint()
    if found != expected:
        raise FingerprintError(
            f"the index '{folder}' was built with the encoder '{manifest['encoder']}' {expected[:19]}…, but "
            f"'{encoder.name}' is {found[:19]}…. Load it with that encoder, or build it anew."
        )
