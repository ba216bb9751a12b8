import json

import numpy as np
import pytest

from peft_rag.corpus import Corpus, Document
from peft_rag.errors import ArtefactError, ConfigError, RetrievalError, ShapeError
from peft_rag.retrieval.exact import ExactRetriever
from peft_rag.retrieval.hnsw import GRAPH, HnswIndex, HnswOptions, HnswRetriever
from peft_rag.retrieval.vectors import exact_search


def same(one, other):
    return np.array_equal(one.positions, other.positions) and np.array_equal(one.scores, other.scores)


@pytest.fixture
def built(unit_vectors):
    return HnswIndex.build(unit_vectors(1500))


def test_search_finds_nearly_all_that_exact_search_finds_with_equal_scores(built, unit_vectors):
    queries = unit_vectors(60, seed=1)
    exclude = [set(range(row * 3)) for row in range(60)]
    found = built.search(queries, 10, exclude)
    exact = exact_search(queries, built.vectors, 10, exclude)
    hits = 0
    for row in range(60):
        scores = dict(exact.row(row))
        hits += sum(position in scores for position, _ in found.row(row))
        assert all(scores[position] == score for position, score in found.row(row) if position in scores)
        assert not exclude[row] & {position for position, _ in found.row(row)}
    assert hits / 600 > 0.98


def test_search_looks_further_when_the_nearest_are_excluded(built, unit_vectors):
    queries = unit_vectors(20, seed=1)
    nearest = exact_search(queries, built.vectors, 100).positions
    exclude = [set(row.tolist()) for row in nearest]
    found = built.search(queries, 5, exclude)
    assert (found.positions >= 0).all()
    expected = exact_search(queries, built.vectors, 5, exclude)
    assert np.mean(found.positions == expected.positions) > 0.9


def test_search_is_exact_when_nearly_everything_is_excluded(built, unit_vectors):
    queries = unit_vectors(3, seed=1)
    exclude = [set(range(1500)) - {3, 700}] * 3
    found = built.search(queries, 5, exclude)
    assert same(found, exact_search(queries, built.vectors, 5, exclude))
    assert [len(found.row(row)) for row in range(3)] == [2, 2, 2]


def test_search_is_exact_when_the_graph_reaches_too_few(built, unit_vectors, monkeypatch):
    monkeypatch.setattr(built, "_fetch", lambda queries, count: None)
    queries = unit_vectors(3, seed=1)
    assert same(built.search(queries, 5), exact_search(queries, built.vectors, 5))


@pytest.mark.parametrize("count", [1, 2, 30])
def test_search_never_raises_when_there_are_fewer_vectors_than_asked_for(unit_vectors, count):
    vectors = unit_vectors(count)
    found = HnswIndex.build(vectors).search(vectors[:1], 50)
    assert len(found.row(0)) == count


def test_search_survives_a_graph_of_equal_vectors(unit_vectors):
    vectors = np.repeat(unit_vectors(1), 500, axis=0)
    found = HnswIndex.build(vectors).search(vectors[:2], 10, [{0}, set()])
    assert (found.positions >= 0).all()
    assert 0 not in found.positions[0]


@pytest.mark.parametrize(("twins", "k"), [(4, 3), (60, 3), (200, 3), (200, 250)])
def test_equal_scores_are_ordered_by_position_however_many_there_are(unit_vectors, twins, k):
    vectors = unit_vectors(2000)
    vectors[700 : 700 + twins] = vectors[5]
    queries = np.concatenate([vectors[5:6], unit_vectors(1, seed=1)])
    found = HnswIndex.build(vectors).search(queries, k, [{701}, set()])
    assert found.positions[0].tolist()[:3] == [5, 700, 702]
    if k > twins:
        assert same(found, exact_search(queries, vectors, k, [{701}, set()]))


def test_build_gives_the_same_results_every_time(built, unit_vectors):
    queries = unit_vectors(50, seed=1)
    again = HnswIndex.build(unit_vectors(1500))
    assert same(built.search(queries, 10), again.search(queries, 10))


def test_search_for_one_query_equals_search_for_many(built, unit_vectors):
    queries = unit_vectors(30, seed=1)
    together = built.search(queries, 5)
    for row in range(30):
        assert built.search(queries[row : row + 1], 5).row(0) == together.row(row)


def test_save_and_load_keep_options_and_results(built, unit_vectors, tmp_path):
    built.options = HnswOptions(ef=99)
    built.save(tmp_path / "index")
    loaded = HnswIndex.load(tmp_path / "index")
    queries = unit_vectors(20, seed=1)
    assert loaded.options == HnswOptions(ef=99)
    assert same(loaded.search(queries, 5), built.search(queries, 5))
    with pytest.raises(ArtefactError, match="already holds"):
        built.save(tmp_path / "index")


@pytest.mark.parametrize("name", [GRAPH, "vectors.npy", "manifest.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_load_refuses_damaged_files_before_they_are_opened(built, tmp_path, monkeypatch, name, damage):
    built.save(tmp_path / "index")
    path = tmp_path / "index" / name
    content = bytearray(path.read_bytes())
    if damage == "remove":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    else:
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    monkeypatch.setattr(HnswIndex, "open_graph", lambda *_: pytest.fail("opened before checked"))
    with pytest.raises(RetrievalError) as caught:
        HnswIndex.load(tmp_path / "index")
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_open_graph_refuses_what_is_no_graph_over_the_vectors(built, tmp_path):
    (tmp_path / "wrong").write_bytes(b"no graph")
    with pytest.raises(RetrievalError, match="is no HNSW graph"):
        HnswIndex.open_graph(tmp_path / "wrong", built.vectors, HnswOptions())
    built.save(tmp_path / "index")
    with pytest.raises(RetrievalError, match=r"is a graph of 1,500 vectors, not of 7\."):
        HnswIndex.open_graph(tmp_path / "index" / GRAPH, built.vectors[:7], HnswOptions())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"M": 1}, "hnsw option M must be a whole number of at least 2, but is 1."),
        ({"ef": 0}, "hnsw option ef must be a whole number of at least 1, but is 0."),
        (
            {"ef_construction": "9"},
            "hnsw option ef_construction must be a whole number of at least 1, but is '9'.",
        ),
        ({"threads": -1}, "hnsw option threads must be a whole number of at least 0, but is -1."),
        ({"exact_below": True}, "hnsw option exact_below must be a whole number of at least 0, but is True."),
    ],
)
def test_options_out_of_range_are_refused(encoder, options, message):
    with pytest.raises(ConfigError) as caught:
        HnswRetriever(encoder, **options)
    assert str(caught.value) == message


def test_build_and_search_refuse_nan_and_wrong_shapes(built, unit_vectors):
    broken = unit_vectors(5)
    broken[2, 0] = np.inf
    with pytest.raises(RetrievalError, match="indexed vector 2"):
        HnswIndex.build(broken)
    with pytest.raises(RetrievalError, match="query vector 2"):
        built.search(broken, 1)
    with pytest.raises(ShapeError, match="agree about D"):
        built.search(broken[:, :3], 1)


def test_retriever_is_exact_below_its_size_and_uses_a_graph_from_it_on(encoder, corpus):
    exact = ExactRetriever(encoder)
    exact.index(corpus)
    small = HnswRetriever(encoder)
    small.index(corpus)
    assert small._graph is None
    assert same(small.search(corpus.texts, 5), exact.search(corpus.texts, 5))
    graph = HnswRetriever(encoder, exact_below=len(corpus))
    graph.index(corpus)
    assert graph._graph is not None
    assert same(graph.search(corpus.texts, 5), exact.search(corpus.texts, 5))


def test_retriever_with_a_graph_saves_and_loads(encoder, tmp_path):
    documents = [Document(str(number), f"w{number % 17} w{number % 23} w{number % 29}") for number in range(400)]
    corpus = Corpus(documents)
    retriever = HnswRetriever(encoder, M=8, exact_below=100)
    retriever.index(corpus)
    retriever.save(tmp_path / "index")
    loaded = HnswRetriever.load(tmp_path / "index", encoder)
    assert loaded.settings() == retriever.settings()
    assert loaded.fingerprint == retriever.fingerprint
    assert loaded._graph is not None
    assert same(loaded.search(corpus.texts[:20], 3), retriever.search(corpus.texts[:20], 3))
    assert json.loads((tmp_path / "index" / "manifest.json").read_text())["settings"]["M"] == 8
