"""Controls where an example takes many decisions: words with tags, and tokens of written texts."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from peft_rag.benchmark.controls import (
    Filler,
    control_arms,
    control_texts,
    oracle_neighbours,
    possible_arms,
    shuffled_corpus,
)
from peft_rag.corpus import Corpus, Document
from peft_rag.fusion.base import Fusion, Split
from peft_rag.fusion.concat import ConcatFusion
from peft_rag.fusion.fid import FidFusion
from peft_rag.fusion.marginal import MarginalFusion
from peft_rag.fusion.projector import ProjectorFusion
from peft_rag.generation import write
from peft_rag.model import RetrievalAugmentedModel
from peft_rag.records import Record
from peft_rag.retrieval.base import Neighbours
from peft_rag.tasks.base import GOLD, Example
from peft_rag.tasks.text2text import Text2Text
from peft_rag.tasks.token_classification import TokenClassification
from tests.benchmark.test_controls import close, cosine, trained, vote
from tests.benchmark.test_tasks import tagged
from tests.conftest import write_jsonl
from tests.test_generation import examples_of, model_of

pytestmark = pytest.mark.filterwarnings("ignore:No sentence-transformers model found")


def test_word_controls_of_knn_equal_plain_loops(tiny_bert: str, tmp_path: Path) -> None:
    data = {
        name: write_jsonl(tmp_path / f"{name}.jsonl", tagged(9, seed)) for seed, name in enumerate(("train", "test"))
    }
    fixed = {"fusion.k": 3, "fusion.temperature": 0.2, "fusion.weight": 0.7, "task": "token-classification"}
    prepared, _ = trained(tiny_bert, data, tmp_path / "out", fusion="knn", validation_share=0.3, **fixed)
    model, split = prepared.model, prepared.test
    task, outputs, memory = model.task, model.outputs(split), model.memory()
    assert memory is not None
    assert memory.features is not None
    assert len(outputs.log_probs) == 81
    classes = memory.targets[:, 0].tolist()
    wanted = task.targets(split.examples)[:, 0].tolist()
    near = [[(cosine(word, other), place) for place, other in enumerate(memory.features)] for word in outputs.features]
    arms = control_arms(model, split, outputs, ["random", "shuffled", "oracle", "filler"], seed=5)
    assert set(arms) == {"random", "shuffled", "oracle"}

    def answer(rows: list[list[tuple[float, int]]], labels: list[int]) -> object:
        return close(vote(model, outputs.log_probs, [[(score, labels[place]) for score, place in row] for row in rows]))

    nearest = [sorted(row, key=lambda pair: (-pair[0], pair[1]))[:3] for row in near]
    moved = np.random.default_rng(5).permutation(len(classes))
    assert arms["shuffled"].exp().numpy() == answer(nearest, [classes[place] for place in moved])
    own = [[pair for pair in row if classes[pair[1]] == tag] for row, tag in zip(near, wanted, strict=True)]
    alike = [sorted(row, key=lambda pair: (-pair[0], pair[1]))[:3] for row in own]
    assert arms["oracle"].exp().numpy() == answer(alike, classes)
    generator = np.random.default_rng(5)
    drawn = [generator.choice(np.arange(len(classes)), 3, replace=False).tolist() for _ in nearest]
    scored = [
        [(score, place) for (score, _), place in zip(*pair, strict=True)] for pair in zip(nearest, drawn, strict=True)
    ]
    assert arms["random"].exp().numpy() == answer(scored, classes)


def test_shuffled_words_keep_every_tag_and_each_documents_number_of_words() -> None:
    labels = [("B-a", "I-a", "O"), ("O",), ("B-b", "O")]
    corpus = Corpus.from_documents([Document(str(n), "x " * len(own), own) for n, own in enumerate(labels)])
    moved = [shuffled_corpus(corpus, np.random.default_rng(seed), by_word=True) for seed in range(5)]
    for one in moved:
        assert [len(document.labels) for document in one] == [3, 1, 2]
        assert sorted(tag for document in one for tag in document.labels) == sorted(sum(labels, ()))
    assert len({tuple(document.labels for document in one) for one in moved}) > 1


def test_oracle_of_a_tagger_finds_texts_with_entities_of_its_kinds_or_with_none() -> None:
    task = TokenClassification(labels=("O", "B-a", "I-a", "B-b", "I-b"))
    documents = [("O", "B-a"), ("O", "O"), ("B-b", "I-b"), ("B-a", "B-b"), ()]
    corpus = Corpus.from_documents([Document(str(n), "x x", labels) for n, labels in enumerate(documents)])
    split = Split([Example("p", "x", ("B-b",)), Example("q", "x", ("O",)), Example("r", "x", ("I-a", "B-a"))])
    asked: dict[int, list[int]] = {}

    def search(rows: list[int], among: list[int], k: int) -> Neighbours:
        asked.update(dict.fromkeys(rows, among))
        return Neighbours(np.tile(np.arange(k), (len(rows), 1)), np.ones((len(rows), k), np.float32))

    oracle_neighbours(split, corpus, 1, search, task)
    assert asked == {0: [2, 3], 1: [1], 2: [0, 3]}


@pytest.mark.parametrize("family", ["gpt2", "t5"])
def test_filler_overwrites_the_neighbours_of_what_is_written_and_nothing_else(family: str) -> None:
    model = model_of(family, Text2Text(target_length=6), ConcatFusion(k=2))
    examples = examples_of(model, ("w1 w2 w3", "w4 w5"), ("w6", "w7"))
    split = Split(examples, Neighbours(np.array([[0, 2], [1, -1]]), np.array([[0.9, 0.8], [0.7, -np.inf]], np.float32)))
    true, filled = (model.encode(split, fusion=one) for one in (model.fusion, Filler(model.fusion)))
    for example, before, after in zip(examples, true, filled, strict=True):
        assert list(before["pooled_mask"]) == list(after["pooled_mask"])
        assert list(before[GOLD]) == list(after[GOLD])
        said, filler = (model.tokenizer.decode(row["input_ids"]) for row in (before, after))
        assert len(before["input_ids"]) == len(after["input_ids"])
        known = {
            word for document in model.knowledge.corpus for word in f"{document.text} {document.labels[0]}".split()
        }
        assert known & set(said.split())
        assert not known & set(filler.split())
        assert set(example.text.split()) <= set(filler.split())
        if family == "gpt2":
            gold = list(before[GOLD][:-1])
            assert list(after["input_ids"][-len(gold) :]) == gold


def test_token_controls_of_a_writer_equal_plain_loops() -> None:
    from peft_rag.fusion.knn import KnnFusion

    fusion = KnnFusion(k=3, temperature=0.2, weight=0.5)
    model = model_of("gpt2", Text2Text(target_length=6), fusion)
    split = Split(examples_of(model, ("w20 w21", "w22"), ("w23 w1", "w24 w28")))
    outputs, memory = model.outputs(split), model.memory()
    assert memory is not None
    assert memory.features is not None
    arms = control_arms(model, split, outputs, ["shuffled", "oracle"], seed=3)
    tokens, wanted = memory.targets[:, 0].tolist(), model.task.targets(split.examples)[:, 0].tolist()
    moved = [tokens[place] for place in np.random.default_rng(3).permutation(len(tokens))]
    for row, (own, token) in enumerate(zip(outputs.log_probs.exp().tolist(), wanted, strict=True)):
        near = sorted(
            ((cosine(outputs.features[row], other), place) for place, other in enumerate(memory.features)),
            key=lambda pair: -pair[0],
        )
        powers = [(math.exp(score / 0.2), place) for score, place in near[:3]]
        share = sum(power for power, place in powers if moved[place] == token) / sum(power for power, _ in powers)
        assert arms["shuffled"][row].exp().item() == pytest.approx(0.5 * share + 0.5 * own, abs=1e-4)
        assert arms["oracle"][row].exp().item() == pytest.approx(0.5 + 0.5 * own if token in tokens else own, abs=1e-4)


@pytest.mark.parametrize("family", ["gpt2", "t5"])
def test_oracle_of_a_writer_reads_the_documents_that_its_records_name(family: str) -> None:
    """It is likelihood and text of the same model given those, the others the same as without any."""
    model = model_of(family, Text2Text(target_length=6), ConcatFusion(k=2))
    corpus = model.knowledge.corpus
    named = [(corpus[1].id, corpus[2].id), ()]
    examples = [
        replace(example, documents=documents)
        for example, documents in zip(examples_of(model, ("w1 w2", "w3"), ("w4", "w5 w6")), named, strict=True)
    ]
    found = Neighbours(np.array([[0, 1], [0, 1]]), np.array([[0.9, 0.8], [0.7, 0.6]], np.float32))
    split = Split(examples, found)
    arms = control_arms(model, split, model.outputs(split), ["oracle", "random"], seed=0)
    texts = control_texts(model, split, ["oracle"], seed=0)
    order = sorted([1, 2], key=lambda place: -_closeness(model, examples[0].text, corpus[place].text))
    given = Neighbours(np.array([order, [-1, -1]]), np.array([[0.9, 0.8], [-np.inf, -np.inf]], np.float32))
    wanted = replace(split, neighbours=given)
    assert torch.allclose(arms["oracle"], model.outputs(wanted).log_probs)
    assert not torch.allclose(arms["oracle"], arms["random"])
    assert texts == {"oracle": [text for text, _ in write(model, examples, split=wanted)]}


def _closeness(model: RetrievalAugmentedModel, one: str, other: str) -> float:
    first, second = model.knowledge.embed([one, other])
    return float(first @ second)


@pytest.mark.parametrize(
    ("family", "fusion"),
    [("t5", FidFusion(k=2)), ("gpt2", MarginalFusion(k=2)), ("gpt2", ProjectorFusion(k=2, width=4))],
    ids=["fid", "marginal", "projector"],
)
def test_controls_are_written_as_the_fusion_itself_is(family: str, fusion: Fusion) -> None:
    """Neighbours whose labels are permuted write what the same corpus with these labels writes."""
    model = model_of(family, Text2Text(target_length=6), fusion)
    found = Neighbours(np.array([[0, 2], [1, -1]]), np.array([[0.9, 0.8], [0.7, -np.inf]], np.float32))
    split = Split(examples_of(model, ("w1 w2 w3", "w4 w5"), ("w6", "w7")), found)
    texts = control_texts(model, split, ["shuffled", "filler"], seed=1)
    assert [len(written) for written in texts.values()] == [2, 2]
    shuffled = shuffled_corpus(model.knowledge.corpus, np.random.default_rng(1))
    model.knowledge = replace(model.knowledge, corpus=shuffled)
    assert texts["shuffled"] == [text for text, _ in write(model, split.examples, split=split)]


def test_writer_whose_records_name_no_document_has_no_oracle() -> None:
    model = model_of("gpt2", Text2Text(target_length=6), ConcatFusion(k=2))
    split = Split(examples_of(model, ("w1 w2", "w3")), Neighbours(np.array([[0, 1]]), np.ones((1, 2), np.float32)))
    assert possible_arms(model, split) == {"random", "shuffled", "filler"}


def test_documents_that_a_record_names_are_one_or_several_or_none() -> None:
    task = Text2Text(document_field="context_id")
    given: list[dict[str, Any]] = [{"context_id": "a"}, {"context_id": ["a", 7]}, {"context_id": None}, {}]
    records = [Record({"source": "x", "target": "y", **one}, "test", 1) for one in given]
    assert [example.documents for example in task.read(records)] == [("a",), ("a", "7"), (), ()]
    assert [example.documents for example in Text2Text().read(records)] == [()] * 4
