import json
import math
import shutil
from dataclasses import replace

import numpy as np
import pytest

from peft_rag.cli import main
from peft_rag.cli.index_quality import add_to
from peft_rag.corpus import Corpus, Document
from peft_rag.errors import ConfigError, DataError, RetrievalError, ShapeError
from peft_rag.records import read_records
from peft_rag.retrieval.base import Neighbours
from peft_rag.retrieval.bm25 import BM25Retriever
from peft_rag.retrieval.exact import ExactRetriever
from peft_rag.retrieval.hnsw import HnswIndex, HnswOptions, HnswRetriever
from peft_rag.retrieval.manifest import StoreSettings
from peft_rag.retrieval.quality import (
    GraphSearch,
    VectorSearch,
    choose_ef,
    graph_recall,
    judgements_in,
    mrr_at_k,
    ndcg_at_k,
    read_qrels,
    recall_at_k,
    score_rankings,
)
from peft_rag.retrieval.store import IndexStore
from peft_rag.retrieval.store_retriever import StoreRetriever
from peft_rag.retrieval.vectors import exact_search
from peft_rag.retrieval.writing import writing
from tests.retrieval.conftest import WordEncoder


def drawn(seed):
    draw = np.random.default_rng(seed)
    rankings = {f"q{q}": [f"d{d}" for d in draw.permutation(30)[: draw.integers(0, 15)]] for q in range(40)}
    judgements = {
        f"q{q}": {f"d{d}": float(draw.integers(0, 4)) for d in draw.permutation(30)[: draw.integers(0, 6)]}
        for q in range(38)
    }
    return rankings, judgements


def plain(rankings, judgements, k):
    """All three measures, one step at a time."""
    recall, reciprocal, gain = [], [], []
    for query in rankings:
        grades = {d: g for d, g in judgements.get(query, {}).items() if g > 0}
        if not grades:
            continue
        hits, first, dcg = 0, 0.0, 0.0
        for place in range(min(k, len(rankings[query]))):
            document = rankings[query][place]
            if document in grades:
                hits += 1
                first = first or 1 / (place + 1)
                dcg += grades[document] / math.log2(place + 2)
        ideal = 0.0
        for place, grade in enumerate(sorted(grades.values())[::-1]):
            if place < k:
                ideal += grade / math.log2(place + 2)
        recall.append(hits / len(grades))
        reciprocal.append(first)
        gain.append(dcg / ideal)
    return [sum(values) / len(values) for values in (recall, reciprocal, gain)] + [len(recall)]


@pytest.mark.parametrize("k", [1, 3, 10, 100])
@pytest.mark.parametrize("seed", [0, 1])
def test_measures_equal_plain_loops(k, seed):
    rankings, judgements = drawn(seed)
    recall, mrr, ndcg, queries = plain(rankings, judgements, k)
    assert recall_at_k(rankings, judgements, k) == pytest.approx(recall, abs=1e-12)
    assert mrr_at_k(rankings, judgements, k) == pytest.approx(mrr, abs=1e-12)
    assert ndcg_at_k(rankings, judgements, k) == pytest.approx(ndcg, abs=1e-12)
    scores = score_rankings(rankings, judgements, k)
    assert scores.to_dict() == {
        "k": k,
        "recall": pytest.approx(recall),
        "mrr": pytest.approx(mrr),
        "ndcg": pytest.approx(ndcg),
        "queries": queries,
        "unjudged": 40 - queries,
    }


def test_measures_of_a_known_case():
    judgements = {"q": {"a": 3, "b": 1, "c": 0}}
    assert recall_at_k({"q": ["x", "b", "c"]}, judgements, 3) == 0.5
    assert mrr_at_k({"q": ["x", "b", "c"]}, judgements, 3) == 0.5
    assert ndcg_at_k({"q": ["a", "b"]}, judgements, 2) == 1
    assert ndcg_at_k({"q": ["b", "a"]}, judgements, 2) == pytest.approx((1 + 3 / math.log2(3)) / (3 + 1 / math.log2(3)))


def test_measures_refuse_what_they_cannot_score():
    with pytest.raises(ConfigError, match="k must be at least 1"):
        score_rankings({"q": ["a"]}, {"q": {"a": 1}}, 0)
    with pytest.raises(DataError, match="none of the 1 queries has a relevant document"):
        score_rankings({"q": ["a"]}, {"p": {"a": 1}, "q": {"a": 0}}, 1)


def test_qrels_are_read_and_bad_lines_named(tmp_path):
    path = tmp_path / "j.qrels"
    path.write_text("\ufeffq1 0 d1 2\n\nq1\t0\td2\t0\nq2 Q0 d1 1\n", encoding="utf-8")
    assert read_qrels(path) == {"q1": {"d1": 2, "d2": 0}, "q2": {"d1": 1}}
    for content, message in (
        ("q1 0 d1 2\nq1 d1 2\n", r"j\.qrels line 2: 'q1 d1 2' is no judgement\. Each line is"),
        ("q1 0 d1 nan\n", "line 1: .* is no judgement"),
        ("q1 0 d1 good\n", "line 1: .* is no judgement"),
        (" \n", "holds no judgements"),
    ):
        path.write_text(content)
        with pytest.raises(DataError, match=message):
            read_qrels(path)
    path.write_bytes(b"q1 0 \xff 1\n")
    with pytest.raises(DataError, match="no UTF-8"):
        read_qrels(path)
    with pytest.raises(DataError, match="cannot be read"):
        read_qrels(tmp_path / "none")


def test_judgements_are_read_from_a_field():
    records = read_records([{"r": "d1"}, {"r": ["d1", 7]}, {"r": {"d1": 2}}, {"r": []}])
    assert judgements_in(records, ["a", "b", "c", "d"], "r") == {
        "a": {"d1": 1},
        "b": {"d1": 1, "7": 1},
        "c": {"d1": 2},
        "d": {},
    }
    for bad in ({"x": 1}, {"r": None}, {"r": [None]}, {"r": {"d": "x"}}, {"r": True}):
        with pytest.raises(DataError, match="must hold the id of a relevant document"):
            judgements_in(read_records([bad]), ["a"], "r")


def test_graph_recall_counts_what_is_found_and_accepts_ties():
    exact = Neighbours(np.array([[1, 2], [3, -1]]), np.array([[0.9, 0.5], [0.4, -np.inf]], dtype=np.float32))
    assert graph_recall(exact, exact) == 1
    tied = Neighbours(np.array([[1, 7], [3, -1]]), exact.scores)
    assert graph_recall(tied, exact) == 1
    worse = Neighbours(np.array([[1, 7], [-1, -1]]), np.array([[0.9, 0.4], [-np.inf] * 2], dtype=np.float32))
    assert graph_recall(worse, exact) == pytest.approx(1 / 3)
    with pytest.raises(ShapeError, match="must be as many"):
        graph_recall(exact.head(1), exact)


def test_choose_ef_finds_the_smallest_that_reaches_the_recall(unit_vectors):
    vectors, queries = unit_vectors(3000, 48), unit_vectors(60, 48, seed=1)
    graph = HnswIndex.build(vectors, HnswOptions(M=4, ef_construction=20))
    exact = exact_search(queries, vectors, 5)

    def search(ef):
        return HnswIndex(graph.graph, vectors, HnswOptions(ef=ef)).search(queries, 5)

    chosen = choose_ef(search, exact, 0.95)
    assert chosen.ef > 18
    assert chosen.recall == graph_recall(search(chosen.ef), exact) >= 0.95
    assert graph_recall(search(chosen.ef - 1), exact) < 0.95


def test_choose_ef_refuses_what_cannot_be_reached():
    exact = Neighbours(np.array([[1, 2]]), np.array([[0.9, 0.5]], dtype=np.float32))
    for truth, recall in ((exact, 0), (exact, 1.1), (Neighbours(exact.positions[:0], exact.scores[:0]), 0.9)):
        with pytest.raises(ConfigError, match=r"needs a recall in \(0, 1\] and queries"):
            choose_ef(lambda ef: exact, truth, recall)
    nothing = Neighbours(np.full((1, 2), -1), np.full((1, 2), -np.inf, dtype=np.float32))
    with pytest.raises(RetrievalError, match=r"no ef gives this graph recall@2 0\.9: with ef 65536 it reaches 0\.0000"):
        choose_ef(lambda ef: nothing, exact, 0.9)


def test_retrievers_with_a_graph_can_be_searched_with_any_ef(big_corpus, encoder, tmp_path):
    hnsw = HnswRetriever(encoder, M=4, ef_construction=8, ef=1, exact_below=0)
    hnsw.index(big_corpus)
    IndexStore.build(tmp_path / "kb", big_corpus, encoder, StoreSettings(M=4, ef_construction=8, ef=1, exact_below=0))
    queries = encoder.encode(big_corpus.texts[:60])
    for retriever in (hnsw, StoreRetriever(encoder, folder=str(tmp_path / "kb"))):
        assert isinstance(retriever, GraphSearch)
        exact = retriever.search_exactly(queries, 3)
        assert exact.positions.tolist() == exact_search(queries, hnsw.vectors, 3).positions.tolist()
        poor = retriever.search_vectors(queries, 3)
        better = retriever.with_ef(200).search_vectors(queries, 3)
        assert graph_recall(poor, exact) < graph_recall(better, exact)
        assert retriever.search_vectors(queries, 3).positions.tolist() == poor.positions.tolist()
        assert retriever.with_ef(200).settings()["ef"] == 200


def test_retrievers_without_a_graph_say_so(corpus, encoder, tmp_path):
    hnsw = HnswRetriever(encoder)
    hnsw.index(corpus)
    IndexStore.build(tmp_path / "kb", corpus, encoder, StoreSettings(exact_below=28))
    for retriever, least in ((hnsw, "10,000"), (StoreRetriever(encoder, folder=str(tmp_path / "kb")), "28")):
        with pytest.raises(RetrievalError, match=f"has no graph to choose ef for: below {least} documents"):
            retriever.with_ef(9)
    assert not isinstance(ExactRetriever(encoder), GraphSearch)
    assert not isinstance(BM25Retriever(), VectorSearch)


@pytest.fixture
def big_corpus():
    draw = np.random.default_rng(0)
    return Corpus([Document(f"d{n}", " ".join(f"w{w}" for w in draw.integers(0, 80, 6))) for n in range(1500)])


@pytest.fixture
def files(tmp_path):
    words = ["apple", "pear", "iron", "zinc", "rhine", "nile"]
    corpus = [
        {"id": f"d{n}", "text": f"the {a} of {b}"} for n, (a, b) in enumerate((a, b) for a in words for b in words)
    ]
    queries = [{"id": f"q{n}", "text": corpus[n]["text"].upper(), "docs": [f"d{n}"]} for n in (0, 7, 20)]
    queries.append({"id": "q3", "text": "old silver", "docs": "d1"})
    for name, rows in (("corpus", corpus), ("queries", queries)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "q.qrels").write_text("q0 0 d0 1\nq1 0 d3 1\nq7 0 d7 2\n")
    return tmp_path


@pytest.fixture
def run(files, monkeypatch, capsys, tiny_bert):
    monkeypatch.setattr("peft_rag.cli.progress.hold_back_chatter", lambda: None)

    def run(name, *words):
        sources = ["--corpus", str(files / "corpus.jsonl"), "--queries", str(files / "queries.jsonl")]
        status = main(["index", name, *sources, "--encoder", tiny_bert, *words])
        output = capsys.readouterr()
        return status, output.out, output.err

    return run


def test_subcommands_hang_on_any_parser():
    import argparse

    parser = argparse.ArgumentParser()
    add_to(parser.add_subparsers())
    known = parser.parse_args(["overlap", "--corpus", "c", "--queries", "q"])
    assert known.threshold == 0.95


@pytest.mark.parametrize("retriever", ["exact", "bm25", "hybrid"])
def test_evaluate_prints_scores_and_writes_json(run, files, retriever):
    output = files / "out.json"
    words = ["--qrels", str(files / "q.qrels"), "--k", "3", "--retriever", retriever, "--output", str(output)]
    status, out, err = run("evaluate", *words)
    assert status == 0, err
    scores = json.loads(output.read_text())["scores"]
    assert set(scores) >= {"recall@3", "MRR@3", "nDCG@3", "judged queries"}
    assert ("graph recall vs exact" in scores) == (retriever == "exact")
    assert f"recall@3                  {scores['recall@3']:.4f}" in out
    assert "queries/s" in out


def test_evaluate_chooses_ef_and_reads_judgements_from_a_field(run):
    words = ["--relevant-field", "docs", "--retriever.exact_below", "0", "--recall", "1", "--k", "2"]
    status, out, err = run("evaluate", *words)
    assert status == 0, err
    assert "judged queries            4" in out
    assert "graph recall vs exact     1.0000" in out
    assert "ef for recall 1" in out


def test_field_of_the_queries_may_have_another_name_than_that_of_the_documents(run, files):
    asked = [json.loads(line) for line in (files / "queries.jsonl").read_text().splitlines()]
    renamed = [{"question" if name == "text" else name: value for name, value in one.items()} for one in asked]
    (files / "queries.jsonl").write_text("".join(json.dumps(one) + "\n" for one in renamed))
    for command in ("evaluate", "overlap"):
        status, _, err = run(command)
        assert status == 2
        assert "Name the field with --query_field question." in err
        status, out, err = run(command, "--query-field", "question")
        assert status == 0, err
        assert out


def test_evaluate_says_what_is_wrong(run, files):
    assert "Did you mean '--qrels'" in run("evaluate", "--qrel", "x")[2]
    assert "both name judgements" in run("evaluate", "--qrels", "x", "--relevant-field", "docs")[2]
    assert "cannot be read" in run("evaluate", "--qrels", str(files / "none"))[2]
    assert "unknown option 'retriever.eff'" in run("evaluate", "--retriever.eff", "3")[2]
    assert "--save-ef writes the ef that --recall finds into an index" in run("evaluate", "--save-ef")[2]
    assert "both 'kb' and" in run("evaluate", "kb")[2]
    for other in ("exact", "bm25"):
        assert f"retriever is '{other}'. Use hnsw" in run("evaluate", "--retriever", other, "--recall", "0.9")[2]


@pytest.fixture
def kb(big_corpus, files, tiny_bert, monkeypatch):
    """A poor index of 1,500 documents with an encoder that is not the default, and queries among them."""
    monkeypatch.chdir(files)
    settings = StoreSettings(M=4, ef_construction=8, ef=1, exact_below=0)
    documents = [replace(one, text=f"{one.text} apple of w{n}") for n, one in enumerate(big_corpus)]
    return IndexStore.build("kb", documents, WordEncoder(), settings)


def test_evaluate_measures_an_index_folder_and_saves_the_ef_for_a_recall(kb, files, monkeypatch, capsys):
    monkeypatch.setattr("peft_rag.cli.progress.hold_back_chatter", lambda: None)
    monkeypatch.setattr("peft_rag.retrieval.encoder.SentenceEncoder", named_words)
    monkeypatch.setattr("peft_rag.knowledge.SentenceEncoder", named_words)
    chosen = list(kb.documents())[::20]
    rows = [{"id": f"q{n}", "text": one.text, "docs": [one.id]} for n, one in enumerate(chosen)]
    (files / "asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["index", "evaluate", "kb", "--queries", "asked.jsonl", "--relevant-field", "docs", "--k", "3"]
    output = ["--output", "out.json"]

    def scores():
        return json.loads((files / "out.json").read_text())["scores"]

    assert main([*words, *output]) == 0, capsys.readouterr().err
    poor = scores()
    assert set(poor) >= {"recall@3", "MRR@3", "nDCG@3", "graph recall vs exact", "queries/s after encoding"}
    assert poor["graph recall vs exact"] < 0.9
    assert main([*words, "--recall", "0.9", "--save-ef", *output]) == 0, capsys.readouterr().err
    ef = scores()["ef for recall 0.9"]
    assert f"saved: ef {ef} instead of 1 in kb\n" in capsys.readouterr().out
    assert main([*words, *output]) == 0
    good = scores()
    assert good["graph recall vs exact"] >= 0.9
    assert good["recall@3"] > poor["recall@3"]
    assert json.loads((files / "out.json").read_text())["settings"]["ef"] == ef
    kb.refresh()
    assert (kb.info()["ef"], kb.info()["generation"]) == (ef, 2)
    shutil.copytree("kb", "copy")
    kb.set_ef(1)
    searched = ["--corpus", "kb", "--retriever", "store", "--retriever.folder", "copy"]
    asked = [word for word in words if word != "kb"]
    assert main([*asked, *searched, "--recall", "0.5", "--save-ef"]) == 0, capsys.readouterr().err
    assert capsys.readouterr().out.endswith(" in copy\n")
    kb.refresh()
    assert kb.info()["ef"] == 1
    assert kb.verify()["documents"] == 1500


def named_words(name, **options):
    assert name == WordEncoder.name
    return WordEncoder()


def test_ef_is_set_by_one_writer_and_nothing_else_changes(kb):
    kb.delete(["d1"])
    kept = {name: entry for name, entry in kb.snapshot.manifest.files.items() if not name.startswith("deleted")}
    with (
        writing(kb.folder, "add"),
        pytest.raises(RetrievalError, match=r"is being written by process \d+ on .* \(add\)"),
    ):
        kb.set_ef(50)
    with pytest.raises(ConfigError, match="ef must be a whole number of at least 1, but is 0"):
        kb.set_ef(0)
    kb.set_ef(50)
    again = IndexStore.open(kb.folder, WordEncoder())
    assert (again.info()["ef"], again.info()["deleted"], len(again)) == (50, 1, 1499)
    assert kept.items() <= again.snapshot.manifest.files.items()


def test_evaluate_and_overlap_want_one_source(files, capsys):
    queries = ["--queries", str(files / "queries.jsonl")]
    for name in ("evaluate", "overlap"):
        assert main(["index", name, *queries]) == 2
        assert "but neither is named. Name one." in capsys.readouterr().err
        assert main(["index", name, str(files), *queries]) == 2
        assert f"'{files}' holds no index (no manifest.json)." in capsys.readouterr().err


def test_overlap_lists_and_counts(run, files):
    output = files / "out.json"
    status, out, err = run("overlap", "--exact-only", "--show", "2", "--output", str(output))
    assert status == 0, err
    assert "exact              3   75.0%" in out
    assert "exact 1.000  q0 = d0  THE APPLE OF APPLE" in out
    assert "and 1 more" in out
    assert json.loads(output.read_text())["counts"] == {"exact": 3, "near only": 0, "clean": 1}
    status, out, err = run("overlap", "--threshold", "0.999")
    assert status == 0, err
    assert "near only" in out
    assert "must be in (0, 1]" in run("overlap", "--threshold", "1.5")[2]
    assert "unknown option '--treshold'. Did you mean '--threshold'?" in run("overlap", "--treshold", "1")[2]
