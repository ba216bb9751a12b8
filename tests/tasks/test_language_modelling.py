"""Whole runs on plain texts, written from their first token on, also by a backbone that nothing is trained of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from peft_rag.artefact import load
from peft_rag.config import RunConfig, from_mapping
from peft_rag.corpus import Corpus, Document
from peft_rag.errors import RetrievalError
from peft_rag.fusion.base import Split
from peft_rag.job import run
from peft_rag.knowledge import labelled_examples
from peft_rag.records import Record
from peft_rag.retrieval.neighbours import Query, forbidden_positions
from peft_rag.tasks.text_generation import TextGeneration
from tests.conftest import toy_records, write_jsonl
from tests.test_readme import make_decoder

pytestmark = pytest.mark.filterwarnings("ignore:No sentence-transformers model found")


@pytest.fixture
def configured(tiny_bert: str, tmp_path: Path) -> Any:
    """Make the configuration of a run on twenty plain texts a split, some names changed."""
    make_decoder(tmp_path / "decoder", tiny_bert)
    names = ("train", "validation", "test")
    texts = {
        name: write_jsonl(tmp_path / f"{name}.jsonl", [{"text": one["text"]} for one in toy_records(20, seed)])
        for seed, name in enumerate(names)
    }

    def make(**changes: Any) -> RunConfig:
        base = {
            "task": "text-generation",
            "task.target_length": 24,
            "backbone": str(tmp_path / "decoder"),
            "encoder": tiny_bert,
            "max_length": 64,
            "disable_tqdm": True,
            "output": str(tmp_path / "out"),
        }
        return from_mapping(base | texts | changes)

    return make


def test_plain_text_is_a_document_without_an_answer_and_comes_back_as_it_was() -> None:
    task = TextGeneration()
    (learned,) = task.read([_record("all of this is learned")])
    document = task.document_of(learned)
    assert (document.text, document.labels) == ("all of this is learned", ())
    again = task.example_of(document, "corpus")
    assert (again.text, again.labels) == (learned.text, learned.labels) == ("", ("all of this is learned",))


def _record(text: str) -> Record:
    return Record({"text": text}, "test", 1)


@pytest.mark.parametrize("fusion", ["none", "knn"])
@pytest.mark.parametrize("method", ["head", "lora"])
def test_language_modelling_runs_and_its_artefact_answers_the_same(configured: Any, fusion: str, method: str) -> None:
    said: list[str] = []
    kept: dict[str, Any] = {}

    def observe(prepared: Any, answers: Any) -> None:
        kept["device"], kept["test"] = prepared.model.device, prepared.test.examples
        kept["fused"] = prepared.model.fuse(prepared.model.outputs(prepared.test), prepared.test)

    config = configured(fusion=fusion, method=method, num_train_epochs=1)
    metrics = run(config, said.append, observe=observe).metrics
    untrained = "method 'head' leaves nothing to train: the backbone writes as it is" in said
    assert untrained == (method == "head")
    if untrained:
        assert (metrics["steps"], metrics["trainable_parameters"]) == (0, 0)
        assert metrics["arms"]["untrained"] == metrics["arms"]["without_retrieval"]
    model = load(config.output).to(kept["device"])
    split = Split(kept["test"])
    assert torch.equal(model.fuse(model.outputs(split), split), kept["fused"])
    if fusion == "knn":
        assert json.loads((Path(config.output) / "metrics.json").read_text())["arms"]["with_retrieval"]


def test_documents_without_an_answer_are_a_datastore_for_prompts_too(configured: Any, tmp_path: Path) -> None:
    """Any plain corpus says which token follows which."""
    asked = [{"prompt": one["text"], "response": "danube river"} for one in toy_records(8, 5)]
    data = dict.fromkeys(("train", "validation", "test"), write_jsonl(tmp_path / "asked.jsonl", asked))
    corpus = write_jsonl(tmp_path / "plain.jsonl", [{"text": "the danube river is long"}])
    config = configured(**data, corpus=corpus, fusion="knn", **{"fusion.k": 1}, method="head", **{"task.scored": 0})
    run(config, lambda line: None)
    model = load(config.output)
    assert model.knowledge is not None
    (example,) = labelled_examples(model.knowledge, model.task)
    assert (example.text, example.labels) == ("", ("the danube river is long",))


def test_text_of_training_data_never_asks_itself_nor_its_double() -> None:
    documents = Corpus.from_documents(
        [Document("a", "same text"), Document("b", "same text"), Document("c", "other")], "x"
    )
    (example,) = TextGeneration().read([_record("same text")])
    query = Query("a", example.asked)
    assert forbidden_positions(documents, [query], same_data=True, exclude_duplicates=True) == [{0, 1}]


@pytest.mark.parametrize("fusion", ["concat", "marginal", "projector", "cross-attention"])
def test_fusion_that_searches_by_the_prompt_refuses_texts_without_one(configured: Any, fusion: str) -> None:
    with pytest.raises(RetrievalError, match=r"train.jsonl line 1: is a text to be written from its first word on"):
        run(configured(fusion=fusion), lambda line: None)


def test_how_often_the_named_document_is_found_is_said(configured: Any, tmp_path: Path) -> None:
    records = toy_records(12, 5)
    documents = [{"id": f"d{place}", "text": one["text"] + " and"} for place, one in enumerate(records)]
    asked = [
        {"prompt": one["text"], "response": "a river", "document": f"d{place}"} for place, one in enumerate(records)
    ]
    data = dict.fromkeys(("train", "validation", "test"), write_jsonl(tmp_path / "asked.jsonl", asked))
    said: list[str] = []
    kept: list[Any] = []
    config = configured(
        **data,
        corpus=write_jsonl(tmp_path / "documents.jsonl", documents),
        fusion="concat",
        method="head",
        **{"fusion.k": 2, "task.document_field": "document", "task.scored": 0},
    )
    run(config, said.append, observe=lambda prepared, answers: kept.append(prepared.test))
    (test,) = kept
    hits = sum(row in {place for place, _ in test.neighbours.row(row)} for row in range(12))
    assert hits > 0
    assert (
        f"retrieval: {hits} of 12 test examples ({hits / 12:.1%}) find a document that their record names"
        in " ".join(said)
    )
