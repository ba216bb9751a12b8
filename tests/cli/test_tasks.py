"""Every task that judges parts of a text, from its records to an artefact that predicts and is measured."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from peft_rag import RetrievalAugmentedModel
from peft_rag.records import read_records
from tests.cli.conftest import Run
from tests.conftest import FILLER, WORDS, write_jsonl

Row = dict[str, Any]
KINDS = sorted(WORDS)


def relation(draw: random.Random) -> Row:
    """Of what kind the head is says the relation; a third word is there to mislead."""
    label = draw.choice(KINDS)
    tokens = [*draw.choices(FILLER, k=3), draw.choice(WORDS[label]), draw.choice(WORDS[draw.choice(KINDS)])]
    draw.shuffle(tokens)
    head = next(place for place, token in enumerate(tokens) if token in WORDS[label])
    tail = next(place for place, token in enumerate(tokens) if token in FILLER)
    return {"tokens": tokens, "head": [head], "tail": tail, "label": label}


def sense(draw: random.Random) -> Row:
    row = relation(draw)
    return {"tokens": row["tokens"], "position": row["head"][0], "label": row["label"]}


def entities(draw: random.Random) -> Row:
    tokens = [draw.choice(FILLER if draw.random() < 0.5 else WORDS[draw.choice(KINDS)]) for _ in range(6)]
    tags = [next((f"B-{kind}" for kind in KINDS if token in WORDS[kind]), "O") for token in tokens]
    return {"tokens": tokens, "tags": tags}


def choices(draw: random.Random) -> Row:
    """The one fruit among two or three choices is right."""
    given = [draw.choice(WORDS[kind]) for kind in ("fruit", *draw.sample(("metal", "river"), draw.choice((1, 2))))]
    right = given[0]
    draw.shuffle(given)
    return {"question": draw.choice(FILLER), "choices": given, "label": right}


TASKS: dict[str, tuple[Callable[[random.Random], Row], tuple[str, ...], str, set[str]]] = {
    "multiple-choice": (choices, (), "accuracy", {"label", "choice"}),
    "relation-extraction": (relation, (), "micro_f1", {"label"}),
    "text-classification": (sense, ("--task.span_field", "position"), "accuracy", {"label"}),
    "token-classification": (entities, (), "entity_f1", {"entities", "tags"}),
}


def data(folder: Path, make: Callable[[random.Random], Row]) -> list[str]:
    flags = []
    for seed, (name, count) in enumerate({"train": 60, "validation": 24, "test": 24}.items()):
        draw = random.Random(seed)
        rows = [make(draw) | {"id": f"{name}-{number}"} for number in range(count)]
        flags += [f"--{name}", write_jsonl(folder / f"{name}.jsonl", rows)]
    return flags


@pytest.mark.parametrize(
    ("task", "fusion"),
    [
        ("multiple-choice", "none"),
        ("multiple-choice", "concat"),
        ("multiple-choice", "marginal"),
        ("relation-extraction", "knn"),
        ("relation-extraction", "concat"),
        ("text-classification", "knn"),
        ("token-classification", "knn"),
    ],
)
def test_task_is_trained_predicts_and_is_evaluated(
    peft_rag: Run, tiny_bert: str, tmp_path: Path, task: str, fusion: str
) -> None:
    make, options, metric, said = TASKS[task]
    flags = data(tmp_path, make)
    out, test = str(tmp_path / "out"), flags[-1]
    status, _, _ = peft_rag(
        *("train", "--task", task, "--fusion", fusion, *flags, *options, "--output", out, "--max_length", "32"),
        *("--backbone", tiny_bert, "--encoder", tiny_bert, "--num_train_epochs=3", "--learning_rate=1e-2"),
    )
    assert status == 0
    measured = json.loads((Path(out) / "metrics.json").read_text())
    assert measured["arms"]["without_retrieval"][metric]["value"] > 0.8

    status, lines, _ = peft_rag("predict", out, test)
    predicted = [json.loads(line) for line in lines.splitlines()]
    assert (status, len(predicted)) == (0, 24)
    assert set(predicted[0]) == {"text", "probability", *said}

    model = RetrievalAugmentedModel.from_pretrained(out)
    records = [json.loads(line) for line in Path(test).read_text().splitlines()]
    asked = [{name: value for name, value in record.items() if name not in ("label", "tags")} for record in records]
    read = model.task.read(read_records(test), labelled=False)
    assert [one.labels for one in model.predict(asked)] == [one.labels for one in model.predict(read)]
    card = (Path(out) / "README.md").read_text().split("```python\n")[1].split("```")[0]
    exec(card.replace("this-folder-or-hub-id", out), {})

    status, table, _ = peft_rag("evaluate", out, "--data", test)
    assert status == 0
    shown = next(line for line in table.splitlines() if line.startswith(metric))
    assert f" {100 * measured['test'][metric]:.1f} [" in shown


def test_a_relation_is_explained_by_neighbours_whose_marks_survive_in_the_corpus(
    peft_rag: Run, tiny_bert: str, tmp_path: Path
) -> None:
    flags = data(tmp_path, relation)
    out = str(tmp_path / "out")
    assert (
        peft_rag(
            *("train", "--task", "relation-extraction", *flags, "--output", out, "--shots", "8", "--method", "head"),
            *("--backbone", tiny_bert, "--encoder", tiny_bert, "--max_steps=1", "--max_length", "32"),
            *("--fusion", "knn", "--fusion.weight", "1.0", "--fusion.k", "1", "--fusion.temperature", "0.1"),
        )[0]
        == 0
    )
    status, lines, _ = peft_rag("predict", out, flags[-1], "--explain")
    assert status == 0
    for line in map(json.loads, lines.splitlines()):
        assert [one["labels"] for one in line["neighbours"]] == [[line["label"]]]
        assert line["probability"] == 1


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"tokens": ["a", "b"], "head": [0], "tail": [2], "label": "x"}, "bad.jsonl line 1: 'tail' [2] lies outside"),
        ({"tokens": ["a", "b"], "head": [0], "label": "x"}, "bad.jsonl line 1: field 'tail' is missing"),
    ],
)
def test_bad_relation_is_one_line_with_status_2(peft_rag: Run, tmp_path: Path, record: Row, message: str) -> None:
    bad = write_jsonl(tmp_path / "bad.jsonl", [record])
    status, _, err = peft_rag("train", "--task", "relation-extraction", "--train", bad, "--output", str(tmp_path / "o"))
    assert (status, err.count("\n")) == (2, 1)
    assert message in err


def test_choices_cannot_vote(peft_rag: Run, tmp_path: Path) -> None:
    flags = data(tmp_path, choices)
    status, _, err = peft_rag("train", "--task", "multiple-choice", *flags, "--output", str(tmp_path / "out"))
    assert (status, err.count("\n")) == (2, 1)
    assert err.startswith(
        "RetrievalError: fusion 'knn' lets the labels of documents vote, but a label of task 'multiple"
    )


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--corpus", "corpus.jsonl"), "corpus 'corpus.jsonl' document '1': does not mark the part"),
        (("--long_inputs", "within_document"), "judges parts of a text, but long_inputs is 'within_document'"),
    ],
)
def test_what_does_not_go_together_is_said_before_anything_is_loaded(
    peft_rag: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: tuple[str, ...], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "corpus.jsonl", [{"text": "a b", "label": kind} for kind in KINDS])
    run = ("train", "--task", "relation-extraction", *data(tmp_path, relation), "--output", "out")
    status, _, err = peft_rag(*run, "--backbone", "nowhere", *flags)
    assert (status, err.count("\n")) == (2, 1)
    assert message in err
