import json

import numpy as np
import pytest

from peft_rag.errors import ConfigError, FingerprintError, RetrievalError, UnknownRetrieverError
from peft_rag.retrieval.base import Neighbours
from peft_rag.retrieval.fusing import fuse_rankings, fuse_scores
from peft_rag.retrieval.hybrid import HybridRetriever
from peft_rag.retrieval.manifest import StoreSettings
from peft_rag.retrieval.store import IndexStore


def neighbours(*rows):
    width = max(map(len, rows))
    positions = np.full((len(rows), width), -1, dtype=np.int64)
    scores = np.full((len(rows), width), -np.inf, dtype=np.float32)
    for row, held in enumerate(rows):
        positions[row, : len(held)] = held
        scores[row, : len(held)] = -np.arange(len(held))
    return Neighbours(positions, scores)


def fused(rankings, k, rrf_k):
    """Reciprocal-rank fusion in plain loops."""
    scores = {}
    for ranking in rankings:
        for rank, position in enumerate(ranking, start=1):
            scores[position] = scores.get(position, 0.0) + 1 / (rrf_k + rank)
    pairs = [(position, float(np.float32(score))) for position, score in scores.items()]
    return sorted(pairs, key=lambda pair: (-pair[1], pair[0]))[:k]


@pytest.mark.parametrize("rrf_k", [0, 1, 60])
@pytest.mark.parametrize("k", [1, 4, 30])
def test_fusion_equals_plain_loops(k, rrf_k):
    draw = np.random.default_rng(0)
    first = [draw.permutation(20)[: draw.integers(1, 12)].tolist() for _ in range(25)]
    second = [draw.permutation(20)[: draw.integers(1, 9)].tolist() for _ in range(25)]
    found = fuse_rankings([neighbours(*first), neighbours(*second)], k, rrf_k)
    assert found.positions.shape == (25, k)
    for row in range(25):
        assert found.row(row) == fused([first[row], second[row]], k, rrf_k)


def scored(draw, row):
    """A ranking of one query: what was found, best first, with scores on a scale of its own."""
    positions = draw.permutation(20)[: draw.integers(0, 12)].tolist()
    scores = np.sort(draw.normal(size=len(positions)).astype(np.float32))[::-1] * 10**row
    return list(zip(positions, scores.round(1).tolist(), strict=True))


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("k", [1, 4, 30])
def test_fusion_of_scores_equals_plain_loops(k, weight):
    draw = np.random.default_rng(1)
    first, second = ([scored(draw, row % 3 - 1) for row in range(25)] for _ in range(2))
    found = fuse_scores([Neighbours.of_rows(first), Neighbours.of_rows(second)], k, (weight, 1 - weight))
    for row in range(25):
        total = {}
        for share, ranking in ((weight, first[row]), (1 - weight, second[row])):
            values = [float(np.float32(score)) for _, score in ranking]
            for position, score in zip((position for position, _ in ranking), values, strict=True):
                spread = max(values) - min(values)
                stretched = (score - min(values)) / spread if spread else 1.0
                total[position] = total.get(position, 0.0) + share * stretched
        expected = sorted(total.items(), key=lambda pair: (-np.float32(pair[1]), pair[0]))[:k]
        assert [position for position, _ in found.row(row)] == [position for position, _ in expected]
        assert [score for _, score in found.row(row)] == pytest.approx([score for _, score in expected], abs=1e-6)


def test_fusion_of_scores_sees_by_how_much_a_document_is_the_best():
    meaning = [(0, 0.51), (1, 0.50), (2, 0.10)]
    words = [(1, 9.0), (0, 2.0), (2, 1.0)]
    ranks = fuse_rankings([Neighbours.of_rows([meaning]), Neighbours.of_rows([words])], 1)
    scores = fuse_scores([Neighbours.of_rows([meaning]), Neighbours.of_rows([words])], 1, (0.5, 0.5))
    assert (ranks.positions.item(), scores.positions.item()) == (0, 1)


def test_fusion_of_nothing_found_is_padding():
    for nothing in (
        fuse_scores([neighbours([], [3]), neighbours([], [])], 2, (0.5, 0.5)),
        fuse_scores([neighbours([], []), neighbours([], [3])], 2, (0.5, 0.5)),
    ):
        assert nothing.row(0) == []
        assert nothing.row(1) == [(3, 0.5)]
    found = fuse_rankings([neighbours([], [3]), neighbours([], [])], 2)
    assert found.row(0) == []
    assert [position for position, _ in found.row(1)] == [3]


def test_hybrid_finds_what_either_retriever_finds(corpus, encoder):
    for fuse, best in (("ranks", 2 / 61), ("scores", 1.0)):
        retriever = HybridRetriever(encoder, fuse=fuse)
        retriever.index(corpus)
        found = retriever.search(["red cat runs"], 3)
        assert corpus[found.row(0)[0][0]].text == "red cat runs"
        assert found.row(0)[0][1] == pytest.approx(best)
    assert len(retriever.search(["nothing shared"], 27).row(0)) == 27


def test_options_reach_the_retrievers_and_the_fingerprint(encoder):
    retriever = HybridRetriever(encoder, first_options={"ef": 9}, second_options={"b": 0.5}, fuse="ranks", rrf_k=10)
    settings = retriever.settings()
    assert (settings["first"], settings["second"], settings["rrf_k"], settings["depth"]) == ("hnsw", "bm25", 10, 100)
    assert "weight" not in settings
    assert settings["first_options"]["ef"] == 9
    assert settings["second_options"]["b"] == 0.5
    assert HybridRetriever(encoder, **settings).fingerprint_for("c") == retriever.fingerprint_for("c")
    assert HybridRetriever(encoder).fingerprint_for("c") != retriever.fingerprint_for("c")
    settings = HybridRetriever(encoder, weight=0.5).settings()
    assert (settings["fuse"], settings["weight"]) == ("scores", 0.5)
    assert "rrf_k" not in settings


def test_options_that_make_no_sense_are_refused(encoder):
    with pytest.raises(ConfigError, match=r"hybrid option rrf_k must be a whole number of at least 0, but is -1"):
        HybridRetriever(encoder, rrf_k=-1)
    with pytest.raises(ConfigError, match=r"hybrid option fuse is 'score'. Choose scores or ranks"):
        HybridRetriever(encoder, fuse="score")
    with pytest.raises(ConfigError, match=r"hybrid option weight must be from 0 to 1, but is 1.5"):
        HybridRetriever(encoder, weight=1.5)
    with pytest.raises(ConfigError, match=r"hybrid option rrf_k counts with fuse: ranks only"):
        HybridRetriever(encoder, rrf_k=1)
    with pytest.raises(ConfigError, match=r"hybrid option weight counts with fuse: scores only"):
        HybridRetriever(encoder, fuse="ranks", weight=0.5)
    with pytest.raises(ConfigError, match=r"hybrid option depth must be a whole number of at least 1, but is 0"):
        HybridRetriever(encoder, depth=0)
    with pytest.raises(ConfigError, match=r"both are 'bm25'\. Name another"):
        HybridRetriever(encoder, first="bm25")
    with pytest.raises(UnknownRetrieverError, match="Did you mean 'bm25'"):
        HybridRetriever(encoder, second="bm2")
    with pytest.raises(ConfigError, match=r"unknown option .retriever\.eff."):
        HybridRetriever(encoder, first_options={"eff": 1})


def test_hybrid_of_words_alone_needs_no_encoder(corpus, encoder):
    retriever = HybridRetriever(encoder, first="bm25", second="bm25", second_options={"b": 0.1})
    retriever.index(corpus)
    assert retriever.encoder_fingerprint() == ""
    assert encoder.encoded == []


def test_load_refuses_another_encoder_and_parts_of_another_index(corpus, encoder, make_encoder, tmp_path):
    for name, documents in (("one", corpus), ("other", type(corpus)(corpus[3:]))):
        retriever = HybridRetriever(encoder)
        retriever.index(documents)
        retriever.save(tmp_path / name)
    with pytest.raises(FingerprintError, match="was built with the encoder 'words' words-0"):
        HybridRetriever.load(tmp_path / "one", make_encoder(seed=1))
    (tmp_path / "one/second").rename(tmp_path / "kept")
    (tmp_path / "other/second").rename(tmp_path / "one/second")
    with pytest.raises(RetrievalError, match="belongs to another index"):
        HybridRetriever.load(tmp_path / "one", encoder)
    manifest = json.loads((tmp_path / "one/manifest.json").read_text())
    assert manifest["retriever"] == "hybrid"
    with pytest.raises(RetrievalError, match="not of 'hybrid'"):
        HybridRetriever.load(tmp_path / "kept", encoder)


def test_hybrid_over_a_stored_index_loads_and_keeps_its_fingerprint_whatever_its_ef(corpus, encoder, tmp_path):
    store = IndexStore.build(tmp_path / "kb", corpus, encoder, StoreSettings(exact_below=0, ef=40))

    def made():
        return HybridRetriever(encoder, first="store", first_options={"folder": str(tmp_path / "kb")})

    retriever = made()
    retriever.index(corpus)
    retriever.save(tmp_path / "index")
    loaded = HybridRetriever.load(tmp_path / "index", encoder)
    assert loaded.settings() == retriever.settings()
    assert loaded.fingerprint == retriever.fingerprint
    assert loaded.search(["red cat runs"], 3).row(0) == retriever.search(["red cat runs"], 3).row(0)
    store.set_ef(50)
    assert made().fingerprint_for(corpus.fingerprint) == retriever.fingerprint
    assert HybridRetriever(encoder).fingerprint_for(corpus.fingerprint) != retriever.fingerprint
