"""Two retrievers in one: their rankings fused."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peft_rag.counts import check_count
from peft_rag.errors import ConfigError, RetrievalError
from peft_rag.files import new_folder, sha256_of_json
from peft_rag.parts import make_part
from peft_rag.registry import RETRIEVERS, load
from peft_rag.retrieval.base import NO_POSITION, Encoder, Neighbours, Retriever
from peft_rag.retrieval.recorded import about_encoder, check_encoder, manifest_of, recorded_encoder
from peft_rag.retrieval.storage import write_manifest
from peft_rag.retrieval.vectors import empty_neighbours, fill_nearest

if TYPE_CHECKING:
    from peft_rag.corpus import Corpus

FORMAT = 1
FIRST, SECOND = "first", "second"


class HybridRetriever(Retriever):
    """Reciprocal-rank fusion of two retrievers, by default of meaning (hnsw) and words (bm25).

    score(d) = Σ_r 1 / (rrf_k + rank_r(d)), over the retrievers r that find d, ranks counted from 1. Only ranks count,
    so the retrievers' scores need no common scale.

    Source: Cormack, Clarke and Büttcher 2009, doi:10.1145/1571941.1572114.
    """

    name = "hybrid"

    def __init__(
        self,
        encoder: Encoder,
        *,
        first: str = "hnsw",
        second: str = "bm25",
        rrf_k: int = 60,
        depth: int = 100,
        first_options: Mapping[str, Any] | None = None,
        second_options: Mapping[str, Any] | None = None,
    ) -> None:
        """Take encoder and options.

        Args:
            encoder: what turns texts into vectors, for the retrievers that need it.
            first: name of the first retriever.
            second: name of the second.
            rrf_k: how little the very first ranks stand out; larger means flatter.
            depth: how many each retriever contributes; at least as many as are asked for.
            first_options: options of the first retriever.
            second_options: options of the second.

        Raises:
            UnknownRetrieverError: no retriever has one of the names.
            ConfigError: an option is out of range or unknown, or both retrievers are the same.
        """
        for option, value, least in (("rrf_k", rrf_k, 0), ("depth", depth, 1)):
            check_count(f"hybrid option {option}", value, least)
        self.encoder = encoder
        self.rrf_k, self.depth = rrf_k, depth
        self._names = {FIRST: first, SECOND: second}
        self.parts = {FIRST: _make(encoder, first, first_options), SECOND: _make(encoder, second, second_options)}
        if first == second and self.parts[FIRST].settings() == self.parts[SECOND].settings():
            raise ConfigError(f"hybrid fuses two retrievers, but both are '{first}'. Name another as first or second.")

    def settings(self) -> dict[str, Any]:
        options = {f"{place}_options": part.settings() for place, part in self.parts.items()}
        return {**self._names, "rrf_k": self.rrf_k, "depth": self.depth, **options}

    def fingerprint_for(self, corpus_fingerprint: str) -> str:
        """Return a hash of both retrievers, each by what decides its results, and of how they are fused."""
        parts = [part.fingerprint_for(corpus_fingerprint) for part in self.parts.values()]
        return sha256_of_json([self.name, self.rrf_k, self.depth, parts])

    def encoder_fingerprint(self) -> str:
        return next(filter(None, (part.encoder_fingerprint() for part in self.parts.values())), "")

    def index_state(self) -> str:
        return "".join(part.index_state() for part in self.parts.values())

    def index(self, corpus: Corpus, progress: str | None = None) -> None:
        for place, part in self.parts.items():
            part.index(corpus, f"{progress}, {self._names[place]}" if progress else None)
        self.corpus_fingerprint = corpus.fingerprint

    def find(
        self, texts: Sequence[str], k: int, exclude: Sequence[Collection[int]] | None, progress: str | None
    ) -> Neighbours:
        rankings = []
        for place, part in self.parts.items():
            title = f"{progress}, {self._names[place]}" if progress else None
            rankings.append(part.search(texts, max(k, self.depth), exclude, title))
        return fuse_rankings(rankings, k, self.rrf_k)

    def save(self, folder: Path) -> None:
        self.require_index()
        about = {
            "format": FORMAT,
            "retriever": self.name,
            "settings": self.settings(),
            **about_encoder(self, self.encoder),
            "corpus_fingerprint": self.corpus_fingerprint,
        }
        with new_folder(folder) as working:
            write_manifest(working, about)
            for place, part in self.parts.items():
                part.save(working / place)

    @classmethod
    def load(cls, folder: Path, encoder: Encoder | None = None) -> HybridRetriever:
        """Read an index that `save` wrote.

        Args:
            folder: the index.
            encoder: the encoder it was built with; loaded by its recorded name if None.

        Raises:
            RetrievalError: the folder holds no index, a damaged one, or another retriever's.
            FingerprintError: the encoder is not the one it was built with.
        """
        manifest = manifest_of(cls, folder, FORMAT)
        settings, corpus = manifest["settings"], manifest["corpus_fingerprint"]
        retriever = cls.__new__(cls)
        retriever.encoder = encoder or recorded_encoder(manifest)
        retriever.rrf_k, retriever.depth = settings["rrf_k"], settings["depth"]
        retriever._names = {place: settings[place] for place in (FIRST, SECOND)}
        retriever.corpus_fingerprint, retriever.parts = corpus, {}
        for place, name in retriever._names.items():
            part = _load(load(RETRIEVERS, name), folder / place, retriever.encoder)
            if (part.settings(), part.corpus_fingerprint) != (settings[f"{place}_options"], corpus):
                raise RetrievalError(
                    f"'{folder / place}' belongs to another index. Remove '{folder}' and build it anew."
                )
            retriever.parts[place] = part
        check_encoder(retriever, retriever.encoder, manifest, folder)
        return retriever


def fuse_rankings(rankings: Sequence[Neighbours], k: int, rrf_k: int = 60) -> Neighbours:
    """Fuse rankings of one corpus by reciprocal ranks.

    score(d) = Σ_r 1 / (rrf_k + rank_r(d)), ranks counted from 1; documents of equal score are ordered by position.

    Dims: Q queries, K neighbours asked for.

    Args:
        rankings: what each retriever found for the Q queries, to any depth.
        k: how many to return; fewer come back, padded, where fewer were found.
        rrf_k: how little the very first ranks stand out.

    Returns:
        Positions and fused scores ``(Q, K)``.

    Source: Cormack, Clarke and Büttcher 2009, doi:10.1145/1571941.1572114.
    """
    import numpy as np

    found = empty_neighbours(len(rankings[0]), k)
    for row in range(len(found)):
        positions = np.concatenate([one.positions[row] for one in rankings])
        shares = np.concatenate([1 / (rrf_k + np.arange(1.0, one.k + 1)) for one in rankings])
        held = positions != NO_POSITION
        documents, place = np.unique(positions[held], return_inverse=True)
        scores = np.bincount(place, weights=shares[held], minlength=len(documents)).astype(np.float32)
        fill_nearest(found, row, np.zeros(len(documents), dtype=np.int64), documents, scores)
    return found


def _make(encoder: Encoder, name: str, options: Mapping[str, Any] | None) -> Retriever:
    part: Retriever = make_part(load(RETRIEVERS, name), "retriever", dict(options or {}), encoder)
    return part


def _load(kind: Any, folder: Path, encoder: Encoder) -> Retriever:
    part: Retriever = kind.load(folder, encoder)
    return part
