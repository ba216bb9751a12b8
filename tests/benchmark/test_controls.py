from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from peft_rag.benchmark.controls import (
    Filler,
    control_arms,
    oracle_neighbours,
    shuffled_corpus,
)
from peft_rag.config import from_mapping
from peft_rag.corpus import Corpus, Document
from peft_rag.fusion.base import READ, Split
from peft_rag.job import Answers, Prepared, run
from peft_rag.model import RetrievalAugmentedModel
from peft_rag.retrieval.base import Neighbours
from peft_rag.retrieval.drawn import random_neighbours
from peft_rag.tasks.base import Example

pytestmark = pytest.mark.filterwarnings("ignore:No sentence-transformers model found")


def trained(tiny_bert: str, data: dict[str, str], output: Path, **changes: Any) -> tuple[Prepared, Answers]:
    """Train in a second and return what an observer is given."""
    seen: list[tuple[Prepared, Answers]] = []
    settings = {
        **data,
        "backbone": tiny_bert,
        "encoder": tiny_bert,
        "max_length": 48,
        "max_steps": 4,
        "disable_tqdm": True,
        "output": str(output),
        **changes,
    }
    run(from_mapping(settings), say=lambda line: None, observe=lambda *given: seen.append(given))
    return seen[0]


def vote(model: Any, log_probs: torch.Tensor, rows: list[list[tuple[float, int]]]) -> list[list[float]]:
    """Mix the model's probabilities with a vote of (similarity, class) pairs, in plain loops."""
    fusion, mixed = model.fusion, []
    for own, pairs in zip(log_probs.exp().tolist(), rows, strict=True):
        powers = [math.exp(score / fusion.temperature) for score, _ in pairs]
        votes = [0.0] * len(own)
        for power, (_, label) in zip(powers, pairs, strict=True):
            votes[label] += power / sum(powers)
        mixed.append([fusion.weight * v + (1 - fusion.weight) * p for v, p in zip(votes, own, strict=True)])
    return mixed


def close(expected: list[list[float]]) -> Any:
    return pytest.approx(np.array(expected), abs=1e-4)


def cosine(left: torch.Tensor, right: torch.Tensor) -> float:
    return float(left.double() @ right.double() / (left.double().norm() * right.double().norm()))


@pytest.mark.parametrize("space", ["tuned", "retriever"])
def test_knn_controls_equal_plain_loops(tiny_bert: str, toy_data: dict[str, str], tmp_path: Path, space: str) -> None:
    fixed = {"fusion.space": space, "fusion.k": 4, "fusion.temperature": 0.2, "fusion.weight": 0.7}
    prepared, answers = trained(tiny_bert, toy_data, tmp_path / "out", fusion="knn", **fixed)
    model, split = prepared.model, prepared.test
    assert model.knowledge is not None
    corpus, task = model.knowledge.corpus, model.task
    outputs = model.outputs(split)
    targets = task.targets(split.examples).tolist()
    labels = [task.labels.index(document.labels[0]) for document in corpus]
    if space == "tuned":
        memory = model.memory()
        assert memory is not None
        assert memory.features is not None
        queries, documents = outputs.features, memory.features
    else:
        encoder = model.knowledge.retriever.encoder
        queries = torch.tensor(encoder.encode([example.text for example in split.examples]))
        documents = torch.tensor(encoder.encode(corpus.texts))
    near = [[(cosine(query, document), place) for place, document in enumerate(documents)] for query in queries]
    nearest = [sorted(row, key=lambda pair: (-pair[0], pair[1]))[:4] for row in near]

    arms = control_arms(model, split, outputs, ["random", "shuffled", "oracle", "filler"], seed=5)
    assert set(arms) == {"random", "shuffled", "oracle"}

    expected = vote(model, outputs.log_probs, [[(score, labels[place]) for score, place in row] for row in nearest])
    assert answers.log_probs["with_retrieval"].exp().numpy() == close(expected)

    moved = np.random.default_rng(5).permutation(len(corpus))
    rows = [[(score, labels[moved[place]]) for score, place in row] for row in nearest]
    assert arms["shuffled"].exp().numpy() == close(vote(model, outputs.log_probs, rows))

    own = [
        sorted((pair for pair in row if labels[pair[1]] == target), key=lambda pair: (-pair[0], pair[1]))[:4]
        for row, target in zip(near, targets, strict=True)
    ]
    rows = [[(score, labels[place]) for score, place in row] for row in own]
    assert arms["oracle"].exp().numpy() == close(vote(model, outputs.log_probs, rows))

    generator = np.random.default_rng(5)
    rows = []
    for row in nearest:
        drawn = generator.choice(np.arange(len(corpus)), 4, replace=False)
        rows.append([(score, labels[place]) for (score, _), place in zip(row, drawn, strict=True)])
    assert arms["random"].exp().numpy() == close(vote(model, outputs.log_probs, rows))


def test_concat_controls_change_what_is_read_and_nothing_else(
    tiny_bert: str, toy_data: dict[str, str], tmp_path: Path
) -> None:
    changes = {"fusion": "concat", "fusion.k": 2, "fallback": False}
    prepared, answers = trained(tiny_bert, toy_data, tmp_path / "out", **changes)
    model, split = prepared.model, prepared.test
    assert model.knowledge is not None
    corpus = model.knowledge.corpus
    outputs = model.outputs(split)
    arms = control_arms(model, split, outputs, ["random", "shuffled", "oracle", "filler"], seed=5)
    assert set(arms) == {"random", "shuffled", "oracle", "filler"}
    for given in arms.values():
        assert given.shape == answers.log_probs["with_retrieval"].shape
        assert not torch.equal(given, answers.log_probs["with_retrieval"])

    def read(example: Example, documents: list[Document]) -> torch.Tensor:
        """Answer one example beside some documents, written out by hand."""
        beside = " ".join(f"{document.labels[0]}: {document.text}" for document in documents)
        row = model.tokenizer(example.text, beside)
        border = row.sequence_ids(0).index(1)
        row = dict(row) | {"pooled_mask": [int(place < border) for place in range(len(row["input_ids"]))]}
        model.eval()
        with torch.no_grad():
            batch = {name: value.to(model.device) for name, value in model.collate([row]).items()}
            return model(**batch)["log_probs"][0].cpu()

    order = np.random.default_rng(5).permutation(len(corpus))
    assert split.neighbours is not None
    for number, example in list(enumerate(split.examples))[:6]:
        found = [place for place, _ in split.neighbours.row(number)[:2]]
        moved = [Document(corpus[place].id, corpus[place].text, corpus[int(order[place])].labels) for place in found]
        assert arms["shuffled"][number].tolist() == pytest.approx(read(example, moved).tolist(), abs=1e-4)
        encoder = model.knowledge.retriever.encoder
        query, *vectors = torch.tensor(encoder.encode([example.text, *corpus.texts]))
        own = [place for place, document in enumerate(corpus) if document.labels == example.labels]
        best = sorted(own, key=lambda place: (-cosine(query, vectors[place]), place))[:2]
        assert arms["oracle"][number].tolist() == pytest.approx(
            read(example, [corpus[place] for place in best]).tolist(), abs=1e-4
        )


def test_filler_keeps_every_length_and_the_input_itself(
    tiny_bert: str, toy_data: dict[str, str], tmp_path: Path
) -> None:
    prepared, _ = trained(tiny_bert, toy_data, tmp_path / "out", fusion="concat", method="head", **{"fusion.k": 2})
    model = prepared.model
    true, filled = (model.encode(prepared.test, fusion=one) for one in (model.fusion, Filler(model.fusion)))
    for before, after in zip(true, filled, strict=True):
        assert before[READ]
        assert len(before["input_ids"]) == len(after["input_ids"])
        kept = [pooled or token in model.tokenizer.all_special_ids for token, pooled in _tokens(before)]
        same = [left == right for left, right in zip(before["input_ids"], after["input_ids"], strict=True)]
        assert all(one for one, needed in zip(same, kept, strict=True) if needed)
        names = {model.tokenizer.convert_tokens_to_ids(word) for word in ("fruit", "metal", "river")}
        assert not names & {token for token, pooled in _tokens(after) if not pooled}
        assert {name: before[name] for name in before if name != "input_ids"} == {
            name: after[name] for name in after if name != "input_ids"
        }


def _tokens(row: dict[str, Any]) -> list[tuple[int, int]]:
    return list(zip(row["input_ids"], row["pooled_mask"], strict=True))


def test_model_without_retrieval_has_no_controls(tiny_bert: str, toy_data: dict[str, str], tmp_path: Path) -> None:
    prepared, _ = trained(tiny_bert, toy_data, tmp_path / "out", fusion="none", method="head")
    outputs = prepared.model.outputs(prepared.test)
    assert control_arms(prepared.model, prepared.test, outputs, ["random", "oracle"], seed=0) == {}


def test_random_neighbours_are_distinct_allowed_and_as_many() -> None:
    found = Neighbours(
        np.array([[0, 1, 2], [3, -1, -1]]), np.array([[0.9, 0.8, 0.7], [0.6, -np.inf, -np.inf]], np.float32)
    )
    drawn = {tuple(row) for seed in range(200) for row in _drawn(found, seed)}
    assert all(set(row) <= {2, 3, 4} for row in drawn if row[1] != -1)
    assert {row[0] for row in drawn if row[1] == -1} == {0, 1, 2, 3, 4}
    assert all(len(set(row)) == 3 for row in drawn if row[1] != -1)


def _drawn(found: Neighbours, seed: int) -> list[list[int]]:
    given = random_neighbours(found, 5, [{0, 1}, set()], np.random.default_rng(seed))
    assert given.scores.tolist() == found.scores.tolist()
    return [list(row) for row in given.positions.tolist()]


def test_shuffled_corpus_keeps_texts_and_the_number_of_each_label() -> None:
    corpus = Corpus.from_documents([Document(str(n), f"text {n}", (("a", "b")[n % 2],)) for n in range(40)])
    shuffled = shuffled_corpus(corpus, np.random.default_rng(0))
    assert shuffled.texts == corpus.texts
    assert sorted(d.labels for d in shuffled) == sorted(d.labels for d in corpus)
    assert [d.labels for d in shuffled] != [d.labels for d in corpus]


def test_oracle_finds_bearers_of_any_of_the_labels_and_nobody_for_a_label_without_documents() -> None:
    corpus = Corpus.from_documents(
        [Document("0", "x", ("a",)), Document("1", "x", ("b", "c")), Document("2", "x"), Document("3", "x", ("c",))]
    )
    split = Split([Example("q", "x", ("a", "c")), Example("r", "x", ("d",))])
    asked: list[tuple[list[int], list[int]]] = []

    def search(rows: list[int], documents: list[int], k: int) -> Neighbours:
        asked.append((rows, documents))
        return Neighbours(np.array([[2, 0, 1, -1]]), np.array([[0.9, 0.5, 0.1, -np.inf]], np.float32))

    found = oracle_neighbours(split, corpus, 4, search)
    assert asked == [([0], [0, 1, 3])]
    assert found.positions.tolist() == [[3, 0, 1, -1], [-1, -1, -1, -1]]


@pytest.mark.parametrize("held_out", [False, True])
@pytest.mark.parametrize("method", ["lora", "prompt-tuning"])
def test_run_without_retrieval_is_the_arm_without_retrieval_of_knn_bit_for_bit(
    tiny_bert: str, toy_data: dict[str, str], tmp_path: Path, method: str, held_out: bool
) -> None:
    data = {name: path for name, path in toy_data.items() if name != "validation" or not held_out}
    answers = {
        fusion: trained(tiny_bert, data, tmp_path / fusion, fusion=fusion, method=method, max_length=40)[1]
        for fusion in ("none", "knn")
    }
    for arm in ("untrained", "retrieval_alone", "without_retrieval"):
        assert torch.equal(answers["none"].log_probs[arm], answers["knn"].log_probs[arm])


def test_neighbours_that_count_nothing_are_neither_remembered_nor_needed(
    tiny_bert: str, toy_data: dict[str, str], tmp_path: Path
) -> None:
    corpus = tmp_path / "corpus.jsonl"
    shutil.copy(toy_data["train"], corpus)
    given = {**toy_data, "corpus": str(corpus)}
    prepared, answers = trained(tiny_bert, given, tmp_path / "out", fusion="knn", **{"fusion.weight": 0.0})
    model = prepared.model
    assert (model.gate, model.memory(), model.memories) == (0.0, None, {})
    outputs = model.outputs(prepared.test)
    arms = control_arms(model, prepared.test, outputs, ("random", "shuffled", "oracle"), 0)
    assert set(arms) == {"random", "shuffled", "oracle"}
    assert all(torch.equal(log_probs, outputs.log_probs) for log_probs in arms.values())
    assert torch.equal(answers.log_probs["with_retrieval"], answers.log_probs["without_retrieval"])
    corpus.unlink()
    again = RetrievalAugmentedModel.from_pretrained(tmp_path / "out")
    texts = [example.text for example in prepared.test.examples]
    assert [one.labels for one in again.predict(texts)] == [one.labels for one in model.predict(texts)]
    (said,) = again.predict(texts[:1], explain=True)
    assert not said.neighbours
