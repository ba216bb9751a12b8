"""The conformance kit passes every retriever of the package, and finds what is broken in others."""

import numpy as np
import pytest

from peft_rag.errors import ConfigError, ConformanceError, UnknownRetrieverError
from peft_rag.retrieval.base import Neighbours
from peft_rag.retrieval.exact import ExactRetriever
from peft_rag.retrieval.hnsw import HnswRetriever
from peft_rag.testing import WordEncoder, check_retriever
from peft_rag.testing import retrievers as kit

SOUND = {
    "exact": ("exact", {}, None),
    "hnsw-as-exact": ("hnsw", {}, {"ef": 65}),
    "hnsw-graph": ("hnsw", {"exact_below": 0}, {"M": 17}),
    "bm25": ("bm25", {}, {"k1": 1.2}),
    "hybrid": ("hybrid", {}, {"weight": 0.5}),
    "hybrid-ranks": ("hybrid", {"fuse": "ranks"}, {"rrf_k": 61}),
    "hybrid-graph": ("hybrid", {"first_options": {"exact_below": 0}}, {"second_options": {"b": 0.5}}),
    "hybrid-dense": ("hybrid", {"second": "exact"}, {"first_options": {"ef": 65}}),
    "sentences": ("sentences", {}, None),
}


@pytest.mark.parametrize(("name", "options", "changed"), SOUND.values(), ids=SOUND)
def test_retriever_of_the_package_passes(name, options, changed):
    report = check_retriever(name, changed=changed, **options)
    assert len(report.checked) == 12
    assert f"holds: {kit.EXCLUDED}" in str(report)
    assert ("not asked" in str(report)) == (changed is None)


class Broken(ExactRetriever):
    def search(self, texts, k, exclude=None, progress=None):
        found = super().search(texts, k, exclude)
        return self.spoil(Neighbours(found.positions.copy(), found.scores.copy()), texts, k)

    def spoil(self, found, texts, k):
        return found


class IgnoresExclusions(Broken):
    def search(self, texts, k, exclude=None, progress=None):
        return super().search(texts, k, [() for _ in exclude] if exclude else None)


class FillsBackIn(Broken):
    def search(self, texts, k, exclude=None, progress=None):
        found, all_of_them = super().search(texts, k, exclude), super().search(texts, k)
        missing = found.positions < 0
        found.positions[missing], found.scores[missing] = all_of_them.positions[missing], all_of_them.scores[missing]
        return found


class ExcludesFromAll(Broken):
    def search(self, texts, k, exclude=None, progress=None):
        every = set().union(*exclude) if exclude else set()
        if exclude and len(every) < 100 and min(map(len, exclude)) == 0:
            exclude = [every for _ in exclude]
        return super().search(texts, k, exclude)


class ExcludesAfterTakingK(Broken):
    def search(self, texts, k, exclude=None, progress=None):
        found = super().search(texts, k, [() for _ in exclude] if exclude else None)
        for row, forbidden in enumerate(exclude or ()):
            kept = [pair for pair in found.row(row) if pair[0] not in forbidden]
            found.positions[row], found.scores[row] = -1, -np.inf
            for rank, (position, score) in enumerate(kept):
                found.positions[row, rank], found.scores[row, rank] = position, score
        return found


class WorstFirst(Broken):
    def spoil(self, found, texts, k):
        return Neighbours(found.positions[:, ::-1].copy(), found.scores[:, ::-1].copy())


class TiesBackwards(Broken):
    def spoil(self, found, texts, k):
        for row in range(len(found)):
            count = len(found.row(row))
            order = np.lexsort((-found.positions[row, :count], -found.scores[row, :count]))
            found.positions[row, :count] = found.positions[row, :count][order]
        return found


class PadsWithZero(Broken):
    def spoil(self, found, texts, k):
        found.positions[found.positions < 0] = 0
        return found


class OneTooFew(Broken):
    def spoil(self, found, texts, k):
        if k > 1:
            found.positions[:, -1], found.scores[:, -1] = -1, -np.inf
        return found


class Unsteady(Broken):
    def __init__(self, encoder):
        super().__init__(encoder)
        self.calls = 0

    def spoil(self, found, texts, k):
        self.calls += 1
        found.scores[:, 0] += np.float32(self.calls if k == 7 and len(texts) > 1 else 0)
        return found


class OtherInBatches(Broken):
    def spoil(self, found, texts, k):
        found.scores[found.positions >= 0] -= np.float32(len(texts))
        return found


class MissesTheBest(Broken):
    def search_vectors(self, queries, k, exclude=None):
        return super().search_vectors(-queries, k, exclude)


class AllowsNoNeighbours(Broken):
    def search(self, texts, k, exclude=None, progress=None):
        return super().search(texts, max(k, 1), exclude)


class KeepsTheFirstCorpus(Broken):
    def index(self, corpus, progress=None):
        if not self.corpus_fingerprint:
            super().index(corpus)


class LoadsBackwards(Broken):
    @classmethod
    def load(cls, folder, encoder=None):
        loaded = super().load(folder, encoder)
        loaded._vectors = np.array(loaded._vectors)[::-1].copy()
        return loaded


class TrustsItsFiles(Broken):
    @classmethod
    def load(cls, folder, encoder=None):
        try:
            return super().load(folder, encoder)
        except Exception as error:
            if "vectors.npy is missing or damaged" not in str(error):
                raise
            return cls(encoder)


class SilentOption(HnswRetriever):
    def settings(self):
        return {key: value for key, value in super().settings().items() if key != "ef"}


BROKEN = [
    (IgnoresExclusions, kit.EXCLUDED),
    (FillsBackIn, kit.EXCLUDED),
    (ExcludesFromAll, kit.EXCLUDED),
    (ExcludesAfterTakingK, kit.EXCLUDED),
    (WorstFirst, kit.FORM),
    (TiesBackwards, kit.ORDER),
    (PadsWithZero, kit.FORM),
    (OneTooFew, kit.COUNT),
    (Unsteady, f"{kit.REPEAT}|{kit.BATCH}"),
    (OtherInBatches, kit.BATCH),
    (MissesTheBest, kit.ORDER),
    (AllowsNoNeighbours, kit.MISUSE),
    (KeepsTheFirstCorpus, kit.REINDEX),
    (LoadsBackwards, kit.SAVED),
    (TrustsItsFiles, kit.DAMAGE),
]


@pytest.mark.parametrize(("broken", "promise"), BROKEN, ids=lambda value: getattr(value, "__name__", ""))
def test_broken_retriever_fails_with_the_promise_it_breaks(broken, promise):
    with pytest.raises(ConformanceError, match=rf"^({promise})"):
        check_retriever(type(broken.__name__, (broken,), {"name": "broken"}), documents=60)


def test_option_that_leaves_no_trace_in_the_fingerprint_is_found():
    with pytest.raises(ConformanceError, match=rf"^{kit.FINGERPRINT}: the option \{{'ef': 9\}} does not change"):
        check_retriever(SilentOption, changed={"ef": 9}, documents=60)


def test_kit_refuses_too_small_a_corpus_and_unknown_names():
    with pytest.raises(ConfigError, match="at least 40 documents, not 39"):
        check_retriever("exact", documents=39)
    with pytest.raises(UnknownRetrieverError, match="no retriever 'bm26'"):
        check_retriever("bm26")


def test_word_encoder_gives_one_vector_whatever_stands_beside_a_text():
    encoder = WordEncoder()
    together = encoder.encode(["a b", "c"])
    assert np.array_equal(together[:1], encoder.encode(["b a"]))
    assert np.allclose(np.linalg.norm(together, axis=1), 1, atol=1e-6)
    assert encoder.encode([]).shape == (0, 64)
