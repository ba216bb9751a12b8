"""Benchmarks of tasks that take many decisions on an example: from suite to page."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from seqeval.metrics import f1_score
from seqeval.scheme import IOB2

from peft_rag.benchmark.estimate import estimate
from peft_rag.benchmark.pieces import cell_piece, open_pieces
from peft_rag.benchmark.plan import make_plan
from peft_rag.benchmark.report import write
from peft_rag.benchmark.report.analysis import Table, analyse
from peft_rag.benchmark.report.results import read_results
from peft_rag.benchmark.suite import Suite, suite_from_mapping
from peft_rag.config import from_mapping
from peft_rag.job import run
from peft_rag.recommendation.options import SearchOptions
from peft_rag.recommendation.recommend import recommend
from peft_rag.tasks.token_classification import TokenClassification
from peft_rag.testing import TINY_BACKBONES
from peft_rag.testing.fusions import word_tokenizer
from tests.benchmark.test_work import finish
from tests.conftest import WORDS, toy_records, write_jsonl

pytestmark = pytest.mark.filterwarnings("ignore:No sentence-transformers model found")

KINDS = {word: kind for kind, words in WORDS.items() for word in words}


def tagged(count: int, seed: int) -> list[dict[str, Any]]:
    """Return sentences whose fruits and rivers are entities, two in a row one of two words."""
    records = []
    for record in toy_records(count, seed):
        words, tags, before = record["text"].split(), [], ""
        for word in words:
            kind = "" if KINDS.get(word) == "metal" else KINDS.get(word, "")
            tags.append(f"{'I' if kind == before else 'B'}-{kind}" if kind else "O")
            before = kind
        records.append({"id": record["id"], "tokens": words, "tags": tags})
    return records


@pytest.fixture
def tagging(tiny_bert: str, tmp_path: Path) -> dict[str, Any]:
    """A suite of two taggers with three fusions."""
    splits = enumerate(("train", "validation", "test"))
    data = {name: write_jsonl(tmp_path / f"{name}.jsonl", tagged(24, seed)) for seed, name in splits}
    return {
        "name": "tags",
        "data": {"things": data},
        "backbones": [tiny_bert],
        "methods": ["head", "lora"],
        "fusions": ["none", "knn", {"name": "concat", "options": {"fusion.k": 1, "max_length": 48}}],
        "seeds": [0],
        "budget": {"max_steps": 20, "trials": 1},
        "options": {"task": "token-classification", "max_length": 24, "encoder": tiny_bert, "learning_rate": 0.01},
    }


@pytest.fixture
def writing(tiny_bert: str, tmp_path: Path) -> Callable[[str], dict[str, Any]]:
    """Make a suite of two methods that write the word after the last."""

    def make(family: str) -> dict[str, Any]:
        folder, tokenizer = tmp_path / family, word_tokenizer()
        tokenizer.eos_token = "[SEP]"
        TINY_BACKBONES[family]().save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        data = {}
        for name, first in (("train", 0), ("validation", 1), ("test", 2)):
            rows = [
                {"source": f"w{n}", "target": f"w{n + 1} w{n + 2}", "id": f"{name}{n}"} for n in range(first, 30, 3)
            ]
            data[name] = write_jsonl(tmp_path / f"{name}.jsonl", rows)
        options = {"task": "text2text", "task.target_length": 6, "task.scored": 4, "encoder": tiny_bert}
        return {
            "name": "texts",
            "data": {"words": data},
            "backbones": [str(folder)],
            "methods": ["lora", "bitfit" if family == "gpt2" else "adapter"],
            "fusions": ["none", "knn", {"name": "concat", "options": {"fusion.k": 1}}],
            "seeds": [0],
            "budget": {"max_steps": 3, "trials": 1},
            "options": {**options, "max_length": 32},
        }

    return make


def run_suite(suite: Suite, folder: Path) -> dict[str, dict[str, Any]]:
    """Do all of a suite in this process: the content of each cell's file by its name."""
    cells = make_plan(suite).cells
    return {cell.name: finish(cell_piece(cell, folder), folder) for cell in cells}


def reported(folder: Path, needed: tuple[str, ...]) -> Table:
    """Write the report, see that all parts of it say what is needed, and return the table."""
    said: list[str] = []
    write(folder, said.append)
    markdown, page = ((folder / name).read_text() for name in ("report.md", "index.html"))
    for one in needed:
        for text in ("\n".join(said), markdown, page):
            assert one in text.replace("\\", "")
    (table,) = analyse(read_results(folder)[0], {})
    return table


def test_taggers_are_compared_by_entity_f1_with_controls_page_and_report(
    tagging: dict[str, Any], tmp_path: Path
) -> None:
    suite, folder = suite_from_mapping(tagging), tmp_path / "results"
    assert estimate(open_pieces(make_plan(suite), folder, redo=False)) > 0
    found = run_suite(suite, folder)
    assert {content["status"] for content in found.values()} == {"done"}, [one["error"] for one in found.values()]
    arms = {"untrained", "off", "retrieved", "random", "shuffled", "oracle"}
    assert found["things-lora-knn-s0"]["arms"].keys() == arms
    assert found["things-lora-concat-s0"]["arms"].keys() == arms | {"filler"}
    for content in found.values():
        assert (content["main_metric"], content["statistic"]) == ("entity_f1", "f1")
        assert [len(tags) for tags in content["targets"]] == [9] * 24
        assert content["costs"]["off_difference"] == 0
        assert content["costs"]["latency_ms"]["with"]["p50"] > 0
        for arm in content["arms"].values():
            right, predicted, actual = np.array(arm["tallies"]).sum(axis=0)
            expected = 2 * right / (predicted + actual) if predicted + actual else 0
            assert arm["scores"]["entity_f1"] == pytest.approx(expected)
            assert arm["scores"]["entity_recall"] == pytest.approx(right / actual)
    knn = found["things-lora-knn-s0"]["arms"]
    assert knn["oracle"]["scores"]["entity_f1"] >= knn["random"]["scores"]["entity_f1"]

    table = reported(folder, ("entity_f1", "95% interval"))
    assert table.metric_is_tallied
    rows = {one.row.label: one for one in table.results}
    assert rows.keys() == {"head", "lora", "head + knn", "lora + knn", "head + concat", "lora + concat"}
    assert not any(one.mcnemar for one in rows.values())
    one = rows["lora + knn"]
    assert one.quality is not None
    assert one.quality.value == pytest.approx(knn["retrieved"]["scores"]["entity_f1"])
    assert one.quality.low <= one.quality.value <= one.quality.high
    assert set(one.controls) == arms - {"untrained"}
    assert one.controls["shuffled"].mean == pytest.approx(knn["shuffled"]["scores"]["entity_f1"])


def test_tallies_of_a_tagger_are_seqevals_counts(tagging: dict[str, Any], tmp_path: Path) -> None:
    settings = {**tagging["data"]["things"], **tagging["options"], "backbone": tagging["backbones"][0]}
    seen: list[Any] = []
    run(
        from_mapping({**settings, "max_steps": 12, "disable_tqdm": True, "output": str(tmp_path / "out")}),
        say=lambda line: None,
        observe=lambda *given: seen.extend(given),
    )
    prepared, answers = seen
    task, examples = prepared.splits.task, prepared.test.examples
    assert isinstance(task, TokenClassification)
    given = answers.log_probs["without_retrieval"]
    right, predicted, actual = task.tally(given, answers.targets).sum(axis=0)
    guessed = [list(labels) for labels, _ in task.decode(given, examples)]
    truth = [list(example.labels) for example in examples]
    expected = f1_score(truth, guessed, mode="strict", scheme=IOB2)
    assert 2 * right / (predicted + actual) == pytest.approx(expected)


@pytest.mark.parametrize("family", ["gpt2", "t5"])
def test_methods_that_write_are_compared_by_likelihood_with_the_texts_scores(
    writing: Callable[[str], dict[str, Any]], tmp_path: Path, family: str
) -> None:
    suite, folder = suite_from_mapping(writing(family)), tmp_path / "results"
    assert estimate(open_pieces(make_plan(suite), folder, redo=False)) > 0
    found = run_suite(suite, folder)
    assert {content["status"] for content in found.values()} == {"done"}, [one["error"] for one in found.values()]
    arms = {"untrained", "off", "retrieved", "random", "shuffled"}
    assert found["words-lora-knn-s0"]["arms"].keys() == arms | {"oracle"}
    assert found["words-lora-concat-s0"]["arms"].keys() == arms | {"filler"}
    for content in found.values():
        assert (content["main_metric"], content["statistic"], content["written"]) == ("likelihood", "exp_mean", 4)
        assert content["plain_scores"] == ["perplexity"]
        assert [len(tokens) for tokens in content["targets"]] == [3] * 10
        assert content["costs"]["off_difference"] == 0
        for arm in content["arms"].values():
            log_probability, tokens = np.array(arm["tallies"]).sum(axis=0)
            assert tokens == 30
            assert arm["scores"]["likelihood"] == pytest.approx(math.exp(log_probability / tokens))
            assert arm["scores"]["perplexity"] == pytest.approx(1 / arm["scores"]["likelihood"])
        assert {"bleu", "chrf", "rougeL", "exact_match", "f1"} <= content["arms"]["retrieved"]["scores"].keys()
    assert "bleu" not in found["words-lora-knn-s0"]["arms"]["random"]["scores"]
    assert "bleu" in found["words-lora-concat-s0"]["arms"]["random"]["scores"]
    concat = found["words-lora-concat-s0"]
    if concat["gate"]:
        assert concat["arms"]["filler"]["tallies"] != concat["arms"]["off"]["tallies"]
        assert concat["arms"]["filler"]["tallies"] != concat["arms"]["retrieved"]["tallies"]

    said = "Scores of written texts rest on the first 4 test examples, likelihood on all."
    table = reported(folder, ("likelihood", "95% interval", said))
    assert table.metric_is_tallied
    shown = found["words-lora-knn-s0"]["arms"]["retrieved"]["scores"]["perplexity"]
    assert f"| {shown:.1f} |" in (folder / "report.md").read_text().replace("\\", "")


def test_answers_in_contexts_are_compared_by_f1_without_an_oracle(tiny_bert: str, tmp_path: Path) -> None:
    data = {}
    for seed, name in enumerate(("train", "validation", "test")):
        rows = []
        for one in toy_records(8, seed):
            answer = next(word for word in one["text"].split() if word in WORDS[one["label"]])
            given = {"text": [answer], "answer_start": [one["text"].index(answer)]}
            rows.append({"id": one["id"], "question": one["label"], "context": one["text"], "answers": given})
        data[name] = write_jsonl(tmp_path / f"{name}.jsonl", rows)
    suite = suite_from_mapping(
        {
            "name": "questions",
            "data": {"kinds": data},
            "backbones": [tiny_bert],
            "methods": ["lora"],
            "fusions": [{"name": "concat", "options": {"fusion.k": 1}}],
            "seeds": [0],
            "budget": {"max_steps": 2, "trials": 1},
            "options": {"task": "question-answering", "max_length": 48, "encoder": tiny_bert},
        }
    )
    (content,) = run_suite(suite, tmp_path / "results").values()
    assert content["status"] == "done", content["error"]
    assert (content["main_metric"], content["statistic"], len(content["targets"])) == ("f1", "mean", 8)
    assert content["arms"].keys() == {"untrained", "off", "retrieved", "random", "shuffled", "filler"}
    for arm in content["arms"].values():
        assert arm["scores"]["f1"] == pytest.approx(np.mean(arm["tallies"]))
        assert "predictions" not in arm
    table = reported(tmp_path / "results", ("f1", "95% interval"))
    assert table.metric_is_tallied


@pytest.mark.parametrize("family", ["", "gpt2"])
def test_recommend_works_for_tasks_of_many_decisions(
    tagging: dict[str, Any], writing: Callable[[str], dict[str, Any]], tmp_path: Path, family: str
) -> None:
    suite = writing(family) if family else tagging
    (data,) = suite["data"].values()
    settings = {**data, **suite["options"], "backbone": suite["backbones"][0], "max_steps": 4, "fusion": "knn"}
    settings.pop("learning_rate", None)
    options = SearchOptions(methods=("head", "lora") if not family else ("lora", "bitfit"), trials=1)
    found = recommend(from_mapping({**settings, "output": str(tmp_path / "out")}), options, lambda line: None)
    assert found.report["metric"] == ("likelihood" if family else "entity_f1")
    assert (found.folder / "adapter_config.json").exists() or found.report["recommended"]["method"] == "head"
    assert json.loads((found.folder / "recommendation.json").read_text())["recommended"]["test"]
