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
from peft_rag.retrieval.base import Encoder, Neighbours, Retriever
from peft_rag.retrieval.fusing import fuse_rankings, fuse_scores
from peft_rag.retrieval.recorded import about_index, check_encoder, manifest_of, recorded_encoder
from peft_rag.retrieval.storage import write_manifest

if TYPE_CHECKING:
    from peft_rag.corpus import Corpus

FORMAT = 2
FIRST, SECOND = "first", "second"
SCORES, RANKS = "scores", "ranks"
_WEIGHT, _RRF_K = 0.6, 60


class HybridRetriever(Retriever):
    """Two retrievers fused, by default one of meaning (hnsw) and one of words (bm25).

    By scores: score(d) = w · s₁(d) + (1 - w) · s₂(d), each retriever's scores stretched to [0, 1] for each query. By
    ranks: score(d) = Σ_r 1 / (rrf_k + rank_r(d)), over the retrievers r that find d, ranks counted from 1. Scores say
    by how much a document is the best, which ranks do not; see `peft_rag.retrieval.fusing`.

    Source: Bruch et al. 2023, doi:10.1145/3596512; Cormack et al. 2009, doi:10.1145/1571941.1572114.
    """

    name = "hybrid"

    def __init__(
        self,
        encoder: Encoder,
        *,
        first: str = "hnsw",
        second: str = "bm25",
        fuse: str = SCORES,
        weight: float = _WEIGHT,
        rrf_k: int = _RRF_K,
        depth: int = 100,
        first_options: Mapping[str, Any] | None = None,
        second_options: Mapping[str, Any] | None = None,
    ) -> None:
        """Take encoder and options.

        Args:
            encoder: what turns texts into vectors, for the retrievers that need it.
            first: name of the first retriever.
            second: name of the second.
            fuse: by scores, or by ranks.
            weight: of scores: how much the first retriever counts, from 0 to 1.
            rrf_k: of ranks: how little the very first stand out; larger means flatter.
            depth: how many each retriever contributes; at least as many as are asked for.
            first_options: options of the first retriever.
            second_options: options of the second.

        Raises:
            UnknownRetrieverError: no retriever has one of the names.
            ConfigError: an option is out of range or unknown, or both retrievers are the same.
        """
        check_count("hybrid option depth", depth, 1)
        _check_fusing(fuse, weight, rrf_k)
        self.encoder = encoder
        self.fuse, self.weight, self.rrf_k, self.depth = fuse, float(weight), rrf_k, depth
        self._names = {FIRST: first, SECOND: second}
        self.parts = {FIRST: _make(encoder, first, first_options), SECOND: _make(encoder, second, second_options)}
        if first == second and self.parts[FIRST].settings() == self.parts[SECOND].settings():
            raise ConfigError(f"hybrid fuses two retrievers, but both are '{first}'. Name another as first or second.")

    def settings(self) -> dict[str, Any]:
        options = {f"{place}_options": part.settings() for place, part in self.parts.items()}
        return {**self._names, **self._fusing(), "depth": self.depth, **options}

    def fingerprint_for(self, corpus_fingerprint: str) -> str:
        """Return a hash of both retrievers, each by what decides its results, and of how they are fused."""
        parts = [part.fingerprint_for(corpus_fingerprint) for part in self.parts.values()]
        return sha256_of_json([self.name, self._fusing(), self.depth, parts])

    def _fusing(self) -> dict[str, Any]:
        """Return how rankings are fused, and the one number that decides it."""
        number = {"weight": self.weight} if self.fuse == SCORES else {"rrf_k": self.rrf_k}
        return {"fuse": self.fuse, **number}

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
        if self.fuse == SCORES:
            return fuse_scores(rankings, k, (self.weight, 1 - self.weight))
        return fuse_rankings(rankings, k, self.rrf_k)

    def save(self, folder: Path) -> None:
        self.require_index()
        about = about_index(self, FORMAT, self.encoder)
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
        retriever.fuse, retriever.depth = settings["fuse"], settings["depth"]
        retriever.weight, retriever.rrf_k = settings.get("weight", _WEIGHT), settings.get("rrf_k", _RRF_K)
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


def _check_fusing(fuse: str, weight: float, rrf_k: int) -> None:
    """Raise `ConfigError` where rankings cannot be fused so, or a number is given that would count nothing."""
    if fuse not in (SCORES, RANKS):
        raise ConfigError(f"hybrid option fuse is {fuse!r}. Choose {SCORES} or {RANKS}.")
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 <= weight <= 1:
        raise ConfigError(f"hybrid option weight must be from 0 to 1, but is {weight!r}.")
    check_count("hybrid option rrf_k", rrf_k, 0)
    if (fuse == SCORES and rrf_k != _RRF_K) or (fuse == RANKS and weight != _WEIGHT):
        unused, other = ("rrf_k", RANKS) if fuse == SCORES else ("weight", SCORES)
        raise ConfigError(f"hybrid option {unused} counts with fuse: {other} only. Set that too, or leave it out.")


def _make(encoder: Encoder, name: str, options: Mapping[str, Any] | None) -> Retriever:
    part: Retriever = make_part(load(RETRIEVERS, name), "retriever", dict(options or {}), encoder)
    return part


def _load(kind: Any, folder: Path, encoder: Encoder) -> Retriever:
    part: Retriever = kind.load(folder, encoder)
    return part
