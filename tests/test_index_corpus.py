"""An index folder as the corpus of the main job: trained on, predicted from, measured, and guarded against change."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from peft_rag.artefact import load
from peft_rag.cli import main
from peft_rag.config import from_mapping
from peft_rag.corpus import Corpus
from peft_rag.errors import ConfigError, CorpusError, FingerprintError, RetrievalError
from peft_rag.job import run
from peft_rag.retrieval.encoder import SentenceEncoder
from peft_rag.retrieval.store import IndexStore
from tests.conftest import toy_records, write_jsonl

pytestmark = pytest.mark.filterwarnings("ignore:No sentence-transformers model found")

Finish = Callable[..., dict[str, Any]]

VOTES = {"fusion.weight": 0.5}
"""Neighbours count, though validation might say that they need not."""


@pytest.fixture
def kb(tiny_bert: str, tmp_path: Path) -> IndexStore:
    """An index of 45 labelled documents in two groups, cut after 16 tokens, with a graph."""
    records = [{**record, "group": f"g{number % 2}"} for number, record in enumerate(toy_records(45, 7))]
    source = write_jsonl(tmp_path / "kb.jsonl", records)
    words = ["index", "build", str(tmp_path / "kb"), "--corpus", source, "--encoder", tiny_bert]
    assert main([*words, "--max-length", "16", "--exact-below", "20", "--group-field", "group"]) == 0
    return IndexStore.open(tmp_path / "kb")


@pytest.fixture
def finish(tiny_bert: str, toy_data: dict[str, str], tmp_path: Path, kb: IndexStore) -> Finish:
    def call(**changes: Any) -> dict[str, Any]:
        settings = {
            **toy_data,
            "corpus": str(kb.folder),
            "backbone": tiny_bert,
            "encoder": tiny_bert,
            "max_length": 32,
            "num_train_epochs": 2,
            "learning_rate": 0.01,
            "disable_tqdm": True,
            "output": str(tmp_path / "out"),
        }
        return dict(run(from_mapping(settings | changes), say=lambda line: None).metrics)

    return call


@pytest.mark.parametrize("fusion", ["knn-tuned", "knn-retriever", "concat"])
def test_index_is_the_corpus_of_a_run_and_of_its_artefact(
    finish: Finish, kb: IndexStore, toy_data: dict[str, str], tmp_path: Path, fusion: str
) -> None:
    name, _, space = fusion.partition("-")
    metrics = finish(fusion=name, fallback=False, **({"fusion.space": space, **VOTES} if space else {}))
    assert metrics["after"]["accuracy"] > 0.8
    assert {"retrieval_alone", "with_retrieval"} <= metrics["arms"].keys()
    stored = json.loads((tmp_path / "out/peft_rag.json").read_text())["knowledge"]
    assert (stored["retriever"]["name"], stored["retriever"]["options"]) == ("store", {})
    assert stored["corpus"]["documents"] == 45

    model = load(str(tmp_path / "out"))
    assert model.knowledge is not None
    assert [document.group for document in model.knowledge.corpus[:2]] == ["g0", "g1"]
    from peft_rag.records import read_records

    again = model.evaluate(model.task.read(read_records(toy_data["test"])))
    assert {name: score.value for name, score in again.items()} == pytest.approx(metrics["test"], abs=1e-6)
    ids = {document.id for document in kb.documents()}
    for answer in model.predict(["apple pear plum", "iron tin"], explain=True):
        assert {neighbour.id for neighbour in answer.neighbours} <= ids


def test_documents_of_an_index_are_never_encoded_again(
    finish: Finish, kb: IndexStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[str] = []
    encode = SentenceEncoder._encode

    def counted(self: SentenceEncoder, texts: Any, progress: Any) -> Any:
        encoded.extend(texts)
        return encode(self, texts, progress)

    monkeypatch.setattr(SentenceEncoder, "_encode", counted)
    finish(**{"fusion.space": "retriever"})
    assert encoded
    assert not set(encoded) & {document.text for document in kb.documents()}


def test_changed_index_is_an_error_that_says_what_differs(finish: Finish, kb: IndexStore, tmp_path: Path) -> None:
    import shutil

    finish(**VOTES)
    shutil.copytree(kb.folder, tmp_path / "kept")
    assert main(["index", "delete", str(kb.folder), "7-0"]) == 0
    with pytest.raises(FingerprintError, match=r"the index '.*kb' has been changed .* held 45 documents .* holds 44"):
        load(str(tmp_path / "out"))
    changed = load(str(tmp_path / "out"), allow_corpus_mismatch=True)
    assert changed.predict(["apple pear plum"])[0].labels == ("fruit",)
    moved = load(str(tmp_path / "out"), corpus=str(tmp_path / "kept"))
    assert moved.knowledge is not None
    assert len(moved.knowledge.corpus) == 45


def test_compacted_index_of_the_same_documents_is_the_same_corpus(
    finish: Finish, kb: IndexStore, tmp_path: Path
) -> None:
    gone = next(kb.documents())
    assert main(["index", "delete", str(kb.folder), gone.id]) == 0
    finish(**{"fusion.space": "retriever", "fusion.k": 1, "fusion.temperature": 0.1, "fusion.weight": 0.5})
    before = load(str(tmp_path / "out"))
    assert main(["index", "compact", str(kb.folder)]) == 0
    after = load(str(tmp_path / "out"))
    assert after.knowledge is not None
    assert before.knowledge is not None
    assert after.knowledge.retriever.index_state() != before.knowledge.retriever.index_state()
    assert after.predict(["apple pear plum"], explain=True) == before.predict(["apple pear plum"], explain=True)
    found = [model.knowledge.retriever.search(["apple pear plum"], 16) for model in (after, before)]
    names = [
        [model.knowledge.corpus[place].id for place in one.positions[0]]
        for model, one in zip((after, before), found, strict=True)
    ]
    assert names[0] == names[1]
    assert found[0].scores[0] == pytest.approx(found[1].scores[0], abs=1e-6)


def test_another_ef_is_the_same_index_to_an_artefact_and_another_to_its_neighbours(
    finish: Finish, kb: IndexStore, tmp_path: Path
) -> None:
    finish(**VOTES)
    model = load(str(tmp_path / "out"))
    assert model.knowledge is not None
    before = model.knowledge.retriever
    IndexStore.open(kb.folder).set_ef(7)
    again = load(str(tmp_path / "out"))
    assert again.knowledge is not None
    assert again.knowledge.retriever.fingerprint == before.fingerprint
    assert again.knowledge.retriever.index_state() != before.index_state()


def test_encoder_of_another_index_is_refused(finish: Finish, kb: IndexStore, tiny_bert: str, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModel, AutoTokenizer

    other = AutoModel.from_pretrained(tiny_bert)
    with torch.no_grad():
        other.embeddings.word_embeddings.weight[7, 0] += 1e-3
    other.save_pretrained(tmp_path / "other")
    AutoTokenizer.from_pretrained(tiny_bert).save_pretrained(tmp_path / "other")
    with pytest.raises(FingerprintError, match=r"the index '.*kb' was built with the encoder"):
        finish(encoder=str(tmp_path / "other"))


def test_index_without_labels_is_refused_by_a_vote(finish: Finish, tiny_bert: str, tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "bare.jsonl", [{"text": record["text"]} for record in toy_records(9, 8)])
    assert main(["index", "build", str(tmp_path / "bare"), "--corpus", source, "--encoder", tiny_bert]) == 0
    message = r"document '1' of the corpus '.*bare' has no label.* Build the index of labelled documents"
    with pytest.raises(RetrievalError, match=message):
        finish(corpus=str(tmp_path / "bare"))
    assert finish(corpus=str(tmp_path / "bare"), fusion="concat")["after"]["accuracy"] > 0.8


def test_another_retriever_by_name_encodes_the_documents_itself(finish: Finish, tmp_path: Path) -> None:
    finish(retriever="exact")
    stored = json.loads((tmp_path / "out/peft_rag.json").read_text())["knowledge"]
    assert stored["retriever"]["name"] == "exact"
    assert load(str(tmp_path / "out")).predict(["apple pear plum"])[0].labels == ("fruit",)


def test_store_without_an_index_is_an_error(finish: Finish, toy_data: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=r"retriever 'store' searches an index, but none is named"):
        finish(corpus=toy_data["train"], retriever="store")


def test_corpus_reads_an_index_as_it_is(kb: IndexStore, tmp_path: Path, tiny_bert: str) -> None:
    corpus = Corpus.read(kb.folder, text_field="whatever")
    assert list(corpus) == list(kb.documents())
    assert corpus.fingerprint == kb.fingerprint
    words = ["index", "build", str(tmp_path / "copy"), "--corpus", str(kb.folder), "--encoder", tiny_bert]
    assert main(words) == 0
    assert list(IndexStore.open(tmp_path / "copy").documents()) == list(corpus)


def test_index_is_evaluated_and_compared_by_its_own_vectors(
    kb: IndexStore, tiny_bert: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = [{**record, "relevant": [record["id"]]} for record in toy_records(45, 7)]
    asked = write_jsonl(tmp_path / "asked.jsonl", records)
    flags = ["--corpus", str(kb.folder), "--queries", asked, "--encoder", tiny_bert]
    assert main(["index", "evaluate", *flags, "--relevant-field", "relevant"]) == 0
    out = capsys.readouterr().out
    assert "store, 45 queries over 45 documents" in out
    assert main(["index", "overlap", *flags]) == 0
    assert "exact             45  100.0%" in capsys.readouterr().out


def test_index_of_distances_is_compared_by_cosine_all_the_same(
    tiny_bert: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_jsonl(tmp_path / "far.jsonl", toy_records(9, 8))
    asked = write_jsonl(tmp_path / "asked.jsonl", [{"text": f"{one['text']} the"} for one in toy_records(9, 8)])
    words = ["--corpus", source, "--encoder", tiny_bert, "--metric", "l2"]
    assert main(["index", "build", str(tmp_path / "far"), *words]) == 0
    flags = ["--corpus", str(tmp_path / "far"), "--queries", asked, "--encoder", tiny_bert]
    assert main(["index", "overlap", *flags]) == 0
    out = capsys.readouterr().out
    near = next(line for line in out.splitlines() if line.startswith("near only"))
    assert int(near.split()[2]) > 0


def test_a_part_of_an_index_is_no_corpus(kb: IndexStore) -> None:
    with pytest.raises(CorpusError, match=r"kb\[0:10\]' is a part of an index, .* Name '.*kb', or build one"):
        Corpus.read(f"{kb.folder}[0:10]")
