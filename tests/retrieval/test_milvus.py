import importlib.util
import shutil
import sys

import pytest

from peft_rag.corpus import Corpus
from peft_rag.errors import ConfigError, RetrievalError
from peft_rag.places import cache_folder
from peft_rag.retrieval import milvus as module
from peft_rag.retrieval.exact import ExactRetriever
from peft_rag.retrieval.milvus import MilvusRetriever
from peft_rag.testing import check_retriever

needs_milvus = pytest.mark.skipif(
    importlib.util.find_spec("pymilvus") is None or importlib.util.find_spec("milvus_lite") is None,
    reason="the packages of peft-rag[milvus] are absent",
)


@needs_milvus
def test_embedded_milvus_passes_the_kit():
    check_retriever("milvus", changed={"index_type": "AUTOINDEX"}, documents=60)


@needs_milvus
def test_milvus_finds_what_exact_search_finds(encoder, corpus, monkeypatch):
    monkeypatch.setattr(module, "_INSERT", 5)
    ours, exact = MilvusRetriever(encoder), ExactRetriever(encoder)
    ours.index(corpus)
    exact.index(corpus)
    exclude = [set(range(row, 2 * row)) for row in range(9)]
    for k in (1, 4, 30):
        found, wanted = ours.search(corpus.texts[:9], k, exclude), exact.search(corpus.texts[:9], k, exclude)
        assert found.positions.tolist() == wanted.positions.tolist()
        assert found.scores.tolist() == wanted.scores.tolist()


@needs_milvus
def test_many_exclusions_become_a_filter(encoder, corpus, monkeypatch):
    monkeypatch.setattr(module, "_MOST", 20)
    retriever = MilvusRetriever(encoder)
    retriever.index(corpus)
    found = retriever.search([corpus[3].text], 5, [set(range(20))])
    assert {position for position, _ in found.row(0)} <= set(range(20, 27))
    assert len(found.row(0)) == 5
    with pytest.raises(ConfigError, match="milvus returns at most 20 documents for a query, but k is 21"):
        retriever.search(["x"], 21)


@needs_milvus
def test_complete_collection_is_used_again_and_an_incomplete_one_filled_anew(encoder, corpus):
    MilvusRetriever(encoder).index(corpus)
    encoder.encoded.clear()
    again = MilvusRetriever(encoder)
    again.index(corpus)
    assert encoder.encoded == []
    again._client.delete(again._collection, ids=[3])
    again._client.flush(again._collection)
    third = MilvusRetriever(encoder)
    third.index(corpus)
    assert encoder.encoded == [27]
    assert third.search([corpus[3].text], 1).positions.tolist() == [[3]]


@needs_milvus
def test_uri_may_be_a_path_and_does_not_decide_the_fingerprint(encoder, corpus, tmp_path):
    retriever = MilvusRetriever(encoder, uri=str(tmp_path / "own.db"))
    retriever.index(corpus)
    assert (tmp_path / "own.db").exists()
    assert retriever.fingerprint == MilvusRetriever(encoder).fingerprint_for(corpus.fingerprint)
    retriever.save(tmp_path / "index")
    assert MilvusRetriever.load(tmp_path / "index", encoder).search(["red cat runs"], 1).positions.tolist() == [[0]]


@needs_milvus
def test_load_says_when_the_vectors_are_gone(encoder, corpus, tmp_path, monkeypatch):
    retriever = MilvusRetriever(encoder)
    retriever.index(corpus)
    retriever.save(tmp_path / "index")
    retriever._client.close()
    shutil.rmtree(cache_folder() / "milvus")
    monkeypatch.setenv("PEFT_RAG_CACHE", str(tmp_path / "other"))
    with pytest.raises(RetrievalError, match=r"has 27 vectors in Milvus, but the collection 'peft_rag_.*' holds none"):
        MilvusRetriever.load(tmp_path / "index", encoder)


def test_missing_packages_are_named_with_the_command_that_installs_them(encoder, corpus, monkeypatch):
    monkeypatch.setitem(sys.modules, "pymilvus", None)
    with pytest.raises(RetrievalError, match=r'Install it: pip install "peft-rag\[milvus\]"\.$'):
        MilvusRetriever(encoder).index(Corpus(corpus[:2]))
