import inspect

import pytest

from peft_rag import registry
from peft_rag.corpus import Corpus
from peft_rag.errors import ConfigError, FingerprintError, RetrievalError, ShapeError
from peft_rag.retrieval.exact import ExactRetriever
from peft_rag.retrieval.hnsw import HnswRetriever

RETRIEVERS = [ExactRetriever, HnswRetriever]


@pytest.fixture(params=RETRIEVERS, ids=lambda made: made.name)
def make(request):
    return request.param


def test_search_finds_a_text_itself_first_and_what_shares_words_next(make, encoder, corpus):
    retriever = make(encoder)
    retriever.index(corpus)
    found = retriever.search(["red cat runs"], 3)
    assert corpus[found.row(0)[0][0]].text == "red cat runs"
    assert found.row(0)[0][1] == pytest.approx(1)
    for position, _ in found.row(0)[1:]:
        assert len(set(corpus[position].text.split()) & {"red", "cat", "runs"}) == 2


def test_search_excludes_pads_and_never_fills_back_in(make, encoder, corpus):
    retriever = make(encoder)
    retriever.index(corpus)
    found = retriever.search(["red cat runs", "x"], 30, [set(range(1, 27)), range(27)])
    assert found.row(0)[0][0] == 0
    assert [len(found.row(row)) for row in range(2)] == [1, 0]
    assert found.positions.shape == (2, 30)


def test_search_of_no_texts_gives_no_rows(make, encoder, corpus):
    retriever = make(encoder)
    retriever.index(corpus)
    assert retriever.search([], 3).positions.shape == (0, 3)


def test_search_refuses_before_it_encodes(make, encoder, corpus):
    retriever = make(encoder)
    with pytest.raises(RetrievalError, match=rf"^the retriever '{make.name}' has no index yet\."):
        retriever.search(["x"], 1)
    retriever.index(corpus)
    encoder.encoded.clear()
    with pytest.raises(ConfigError, match="k must be at least 1"):
        retriever.search(["x"], 0)
    with pytest.raises(ShapeError, match="one entry a query, but has 2 for 1 queries"):
        retriever.search(["x"], 1, [[], []])
    assert encoder.encoded == []


def test_save_and_load_keep_results_and_fingerprint(make, encoder, corpus, tmp_path):
    retriever = make(encoder)
    with pytest.raises(RetrievalError, match="has no index yet"):
        retriever.save(tmp_path / "index")
    assert not (tmp_path / "index").exists()
    retriever.index(corpus)
    retriever.save(tmp_path / "index")
    loaded = make.load(tmp_path / "index", encoder)
    assert loaded.fingerprint == retriever.fingerprint
    assert loaded.corpus_fingerprint == corpus.fingerprint
    assert loaded.search(["dog eats"], 5).row(0) == retriever.search(["dog eats"], 5).row(0)


def test_load_refuses_another_encoder_another_retriever_and_no_index(make, encoder, corpus, tmp_path, make_encoder):
    retriever = make(encoder)
    retriever.index(corpus)
    retriever.save(tmp_path / "index")
    with pytest.raises(FingerprintError) as caught:
        make.load(tmp_path / "index", make_encoder(seed=1))
    assert str(caught.value) == (
        f"the index '{tmp_path}/index' was built with the encoder 'words' words-0…, but 'words' is words-1…. "
        "Load it with that encoder, or build it anew."
    )
    other = next(kind for kind in RETRIEVERS if kind is not make)
    with pytest.raises(RetrievalError, match=rf"of the retriever '{make.name}', format 1, not of '{other.name}'"):
        other.load(tmp_path / "index", encoder)
    with pytest.raises(RetrievalError, match=r"holds no index \(no manifest\.json\)"):
        make.load(tmp_path, encoder)


def test_fingerprint_changes_with_settings_encoder_and_corpus(encoder, corpus, make_encoder):
    base = HnswRetriever(encoder).fingerprint_for(corpus.fingerprint)
    others = {
        HnswRetriever(encoder, ef=65).fingerprint_for(corpus.fingerprint),
        HnswRetriever(encoder, M=17).fingerprint_for(corpus.fingerprint),
        HnswRetriever(encoder, exact_below=5).fingerprint_for(corpus.fingerprint),
        HnswRetriever(make_encoder(seed=1)).fingerprint_for(corpus.fingerprint),
        HnswRetriever(encoder).fingerprint_for(Corpus(corpus[1:]).fingerprint),
        ExactRetriever(encoder).fingerprint_for(corpus.fingerprint),
    }
    assert len(others | {base}) == 7
    assert HnswRetriever(encoder).fingerprint_for(corpus.fingerprint) == base


def test_retrievers_are_found_by_name_with_summary_source_and_options(make):
    found = registry.describe(registry.RETRIEVERS, make.name)
    assert found.problem == ""
    assert "sentence vectors" in found.summary
    assert "arXiv" in found.source
    assert registry.load(registry.RETRIEVERS, make.name) is make
    options = list(inspect.signature(make).parameters)
    assert options[0] == "encoder"
