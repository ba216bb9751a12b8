import json
import math
import os
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from peft_rag import registry
from peft_rag.corpus import Corpus, Document
from peft_rag.errors import ConfigError, RetrievalError
from peft_rag.retrieval.bm25 import BM25Retriever, _hidden, terms


def corpus_of(*texts):
    return Corpus([Document(f"d{number}", text) for number, text in enumerate(texts)])


def okapi(query, texts, k1, b):
    """BM25 in plain loops."""
    documents = [Counter(terms(text)) for text in texts]
    average = sum(sum(one.values()) for one in documents) / len(documents)
    scores = []
    for one in documents:
        score = 0.0
        for term in terms(query):
            df = sum(1 for other in documents if term in other)
            if df:
                idf = math.log(1 + (len(documents) - df + 0.5) / (df + 0.5))
                length = k1 * (1 - b + b * sum(one.values()) / average)
                score += idf * one[term] / (one[term] + length) if one[term] else 0.0
        scores.append(score)
    return scores


@pytest.mark.parametrize(("k1", "b"), [(1.5, 0.75), (0.9, 0.4), (1.2, 0.0), (2.0, 1.0), (0.0, 0.5)])
def test_scores_equal_plain_loops(k1, b):
    draw = np.random.default_rng(0)
    texts = [" ".join(f"w{n}" for n in draw.zipf(1.6, draw.integers(2, 30)) % 40) for _ in range(50)]
    retriever = BM25Retriever(k1=k1, b=b)
    retriever.index(corpus_of(*texts))
    queries = [*texts[:5], "w1 w1 w2", "w3 unknown"]
    found = retriever.search(queries, 50)
    for row, query in enumerate(queries):
        wanted = okapi(query, texts, k1, b)
        got = dict(found.row(row))
        assert set(got) == {position for position, score in enumerate(wanted) if score > 0}
        for position, score in got.items():
            assert score == pytest.approx(wanted[position], rel=1e-5)


def test_document_that_shares_no_term_is_no_neighbour():
    retriever = BM25Retriever()
    retriever.index(corpus_of("red cat", "green dog", "red dog"))
    found = retriever.search(["red", "", "?!", "blue"], 3)
    assert [[position for position, _ in found.row(row)] for row in range(4)] == [[0, 2], [], [], []]
    assert found.positions[0].tolist() == [0, 2, -1]
    assert found.scores[0, 2] == -np.inf


def test_corpus_without_any_term_finds_nothing_and_survives_saving(tmp_path):
    retriever = BM25Retriever()
    retriever.index(corpus_of("!!", "??"))
    retriever.save(tmp_path / "index")
    for one in (retriever, BM25Retriever.load(tmp_path / "index")):
        assert one.search(["red !!"], 2).positions.tolist() == [[-1, -1]]


def test_document_without_terms_among_others_is_never_found():
    retriever = BM25Retriever()
    retriever.index(corpus_of("red", "!!", "red red"))
    assert {position for position, _ in retriever.search(["red"], 3).row(0)} == {0, 2}


def test_a_combining_mark_is_a_part_of_its_word():
    assert terms("के की हिन्दी") == ["के", "की", "हिन्दी"]
    assert terms("ภาษาที่") == ["ภาษาที่"]
    assert terms("cafe\u0301 café x² ① a_b") == ["café", "café", "x2", "1", "a", "b"]


def test_order_of_the_words_of_a_query_makes_no_difference(corpus):
    retriever = BM25Retriever()
    retriever.index(corpus)
    one, other = retriever.search(["red cat runs"], 9), retriever.search(["runs red CAT"], 9)
    assert one.row(0) == other.row(0)


def test_index_on_disk_is_arrays_and_json_only(corpus, tmp_path):
    retriever = BM25Retriever()
    retriever.index(corpus)
    retriever.save(tmp_path / "index")
    names = sorted(path.name for path in (tmp_path / "index").iterdir())
    assert names == ["data.npy", "indices.npy", "indptr.npy", "manifest.json", "terms.json"]
    assert json.loads((tmp_path / "index/terms.json").read_text()) == sorted(
        {t for x in corpus.texts for t in terms(x)}
    )


def test_load_refuses_another_retrievers_index(corpus, encoder, tmp_path):
    exact = registry.load(registry.RETRIEVERS, "exact")(encoder)
    exact.index(corpus)
    exact.save(tmp_path / "index")
    with pytest.raises(RetrievalError, match=r"of the retriever 'exact', format 1, not of 'bm25'"):
        BM25Retriever.load(tmp_path / "index")


@pytest.mark.parametrize("options", [{"k1": -0.1}, {"k1": math.inf}, {"k1": math.nan}, {"b": 1.1}, {"b": -0.1}])
def test_options_out_of_range_are_refused(options):
    with pytest.raises(ConfigError, match=rf"^bm25 option {next(iter(options))} must be"):
        BM25Retriever(**options)


def test_encoder_is_not_used(corpus, encoder):
    retriever = BM25Retriever(encoder)
    retriever.index(corpus)
    retriever.search(["red"], 1)
    assert encoder.encoded == []
    assert retriever.encoder_fingerprint() == ""


def test_progress_is_shown_only_with_a_title(corpus, capsys):
    retriever = BM25Retriever()
    retriever.index(corpus)
    retriever.search(["red"], 1)
    assert capsys.readouterr().err == ""
    retriever.index(corpus, progress="corpus")
    assert "corpus: 100%" in capsys.readouterr().err


def test_searching_does_not_start_jax_which_would_take_the_accelerators_memory(tmp_path):
    lax = tmp_path / "jax/lax.py"
    lax.parent.mkdir()
    (tmp_path / "jax/__init__.py").write_text("")
    lax.write_text("def top_k(scores, k):\n    raise SystemExit('JAX was started')\n")
    code = """
import sys
from peft_rag.corpus import Corpus, Document
from peft_rag.retrieval.bm25 import BM25Retriever
retriever = BM25Retriever()
retriever.index(Corpus([Document("a", "red cars"), Document("b", "blue cars")]))
print(retriever.search(["red"], 1).positions.tolist(), "jax" in sys.modules)
import jax.lax
print(jax.lax.top_k.__module__)
"""
    path = os.pathsep.join([str(tmp_path), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert (done.stdout, done.returncode) == ("[[0]] False\njax.lax\n", 0), done.stderr


def test_a_hidden_module_that_is_in_use_is_there_again_afterwards(monkeypatch):
    monkeypatch.setitem(sys.modules, "jax", math)
    with _hidden("jax"), pytest.raises(ImportError):
        import jax  # noqa: F401
    assert sys.modules["jax"] is math
