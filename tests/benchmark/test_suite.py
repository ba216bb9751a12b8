from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from peft_rag.benchmark.plan import make_plan
from peft_rag.benchmark.sources import expand
from peft_rag.benchmark.suite import read_suite, suite_from_mapping
from peft_rag.errors import ConfigError, PeftRagError
from peft_rag.slices import split_slice

ROOT = Path(__file__).parent.parent.parent
SUITES = sorted([*ROOT.glob("benchmarks/suites/*.yaml"), *ROOT.glob("examples/benchmark-*.yaml")])


def test_suite_is_read_with_labels_and_defaults(mapping: dict[str, Any]) -> None:
    mapping["methods"] = ["head", {"name": "lora", "label": "lora-wide", "options": {"method.r": 32}}]
    suite = suite_from_mapping(mapping)
    assert [entry.label for entry in suite.methods] == ["head", "lora-wide"]
    assert suite.data[0].shots == (0,)
    assert suite.budget.trials == 2
    assert suite.controls == ("random", "shuffled", "oracle", "filler")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metods": []}, "unknown key 'metods'. Did you mean 'methods'?"),
        (
            {"data": {"kinds": {"trein": "a", "test": "b"}}},
            "data set 'kinds': unknown key 'trein'. Did you mean 'train'?",
        ),
        ({"data": {"kinds": {"train": "a"}}}, "data set 'kinds': 'test' is missing"),
        ({"data": {"two words": {"train": "a", "test": "b"}}}, "data set 'two words' cannot name a file"),
        ({"methods": ["lorra"]}, "no PEFT method 'lorra'. Did you mean 'lora'?"),
        ({"methods": ["lora", "lora"]}, "'methods' names 'lora' twice"),
        ({"methods": []}, "'methods' is empty"),
        ({"methods": "lora"}, "'methods' is 'lora', but must be a list"),
        ({"fusions": [{"name": "knn", "option": {}}]}, "unknown key 'option'. Did you mean 'options'?"),
        ({"seeds": [0, 0]}, "'seeds' names 0 twice"),
        ({"seeds": ["one"]}, "each of the seeds must be a whole number of at least 0, but is 'one'"),
        ({"controls": ["randon"]}, "no control 'randon'. Did you mean 'random'?"),
        ({"reference": {"method": "hed"}}, "no method of the reference row 'hed'. Did you mean 'head'?"),
        ({"budget": {"max_step": 3}}, "unknown key 'max_step'. Did you mean 'max_steps'?"),
        ({"budget": {"max_steps": 0}}, "budget.max_steps must be a whole number of at least 1, but is 0"),
        (
            {"options": {"shots": 3}},
            "the suite: options: shots is decided by the grid. Say it by shots of a data set",
        ),
        ({"options": {"method": "lora"}}, "the suite: options name a method. Rows do, under methods."),
        ({"options": {1: 2}}, "the suite: options: 1 is no name of a run file"),
        (
            {"methods": [{"name": "lora", "options": {"seed": 3}}]},
            "the suite: methods: options: seed is decided by the grid",
        ),
        ({"data": {"kinds": {"train": "a", "test": "b", "shots": []}}}, "'shots of data set 'kinds'' is empty"),
        ({"fusions": [{"name": "knn", "search": {"fusion.k": [1, 2]}}]}, "fusion 'knn' has a search, but trials try"),
        ({"budget": {"max_steps": 6, "tuning_seed": "abc"}}, "budget.tuning_seed must be a whole number of at least 0"),
        ({"budget": {"max_steps": 6, "tuning_seed": 1}}, "budget.tuning_seed is 1, a seed of the suite too"),
    ],
)
def test_mistake_in_a_suite_is_one_line_that_says_what_to_do(
    mapping: dict[str, Any], change: dict[str, Any], message: str
) -> None:
    with pytest.raises(PeftRagError) as caught:
        suite_from_mapping({**mapping, **change})
    assert message in str(caught.value)


def test_missing_suite_file_is_named() -> None:
    with pytest.raises(ConfigError, match=r"suite 'nowhere.yaml' does not exist"):
        read_suite("nowhere.yaml")


@pytest.mark.parametrize("path", SUITES, ids=lambda path: path.stem)
def test_stored_suite_names_nothing_that_is_not_there(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PEFT_RAG_DATA", str(tmp_path))
    suite = read_suite(path)
    assert suite.name in path.stem
    for source in (source for data in suite.data for source in data.sources.values() if "$" in source):
        file = Path(split_slice(expand(source))[0])
        file.parent.mkdir(exist_ok=True)
        file.touch()
    plan = make_plan(suite)
    rows = len(suite.methods) * len(suite.fusions) * len(suite.seeds) * sum(len(data.shots) for data in suite.data)
    assert sum(1 + len(cell.covers) for cell in plan.cells) == rows


@pytest.mark.parametrize(
    "path", sorted(ROOT.glob("benchmarks/results/*/suite.yaml")), ids=lambda path: path.parent.name
)
def test_stored_results_are_described_and_can_be_run_again(path: Path) -> None:
    page = (ROOT / "benchmarks/README.md").read_text(encoding="utf-8")
    assert f"results/{path.parent.name}/report.md" in page
    assert (ROOT / f"benchmarks/suites/{path.parent.name}.yaml").is_file()


def test_options_of_a_part_may_be_given_as_in_a_run_file(mapping: dict[str, Any]) -> None:
    options = {"task": {"name": "text-classification", "pooling": "cls"}, "retriever": {"k": 3}, "max_length": 32}
    suite = suite_from_mapping({**mapping, "options": options})
    flat = {"task": "text-classification", "task.pooling": "cls", "retriever.k": 3, "max_length": 32}
    assert dict(suite.options) == flat
    rows = suite_from_mapping({**mapping, "methods": [{"name": "lora", "options": {"method": {"r": 4}}}]}).methods
    assert dict(rows[0].options) == {"method.r": 4}
