from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from peft_rag.benchmark.plan import as_run, make_plan
from peft_rag.benchmark.suite import Suite, suite_from_mapping
from peft_rag.errors import ConfigError, DataError, PeftRagError

MakeSuite = Callable[..., Suite]


def names(plan: Any) -> list[str]:
    return [cell.name for cell in plan.cells]


def test_cells_go_seed_by_seed_and_none_rides_with_knn(toy_suite: MakeSuite) -> None:
    plan = make_plan(toy_suite())
    first_seed = ["kinds-head-knn-s0", "kinds-lora-knn-s0", "kinds-head-concat-s0", "kinds-lora-concat-s0"]
    assert names(plan) == [*first_seed, *(name.replace("s0", "s1") for name in first_seed)]
    assert [cell.covers for cell in plan.cells[:4]] == [("none",), ("none",), (), ()]


def test_learning_rate_that_the_suite_or_a_data_set_gives_is_not_searched(
    toy_suite: MakeSuite, mapping: dict[str, Any]
) -> None:
    given = toy_suite(options={**mapping["options"], "learning_rate": 5e-5})
    data = {"kinds": {**mapping["data"]["kinds"], "options": {"learning_rate": 5e-5}}}
    for suite in (given, toy_suite(data=data)):
        cell = make_plan(suite).cells[0]
        assert [list(point) for point in cell.study.points] == [["weight_decay"]] * 2
        assert cell.settings(cell.study.points[1])["learning_rate"] == cell.study.trial(0)["learning_rate"] == 5e-5


def test_none_is_a_cell_of_its_own_where_nothing_trains_as_it_does(toy_suite: MakeSuite) -> None:
    alone = make_plan(toy_suite(fusions=["none", "concat"], seeds=[0]))
    assert "kinds-lora-none-s0" in names(alone)
    other = make_plan(toy_suite(fusions=["none", {"name": "knn", "options": {"max_length": 16}}], seeds=[0]))
    assert "kinds-lora-none-s0" in names(other)


def test_shots_and_further_backbones_are_in_the_name(toy_suite: MakeSuite, mapping: dict[str, Any]) -> None:
    data = {"kinds": {**mapping["data"]["kinds"], "shots": [0, 5]}}
    suite = toy_suite(data=data, backbones=[*mapping["backbones"], "some/other-model"], seeds=[0], methods=["lora"])
    found = names(make_plan(suite))
    assert {"kinds-lora-knn-s0", "kinds-5shot-lora-knn-s0", "kinds-5shot-other-model-lora-knn-s0"} <= set(found)


def test_backbones_of_one_last_name_are_told_apart(toy_suite: MakeSuite, mapping: dict[str, Any]) -> None:
    backbones = [*mapping["backbones"], "mine/v1/model", "mine/v2/model", "mine/other", "v2/model"]
    suite = toy_suite(backbones=backbones, seeds=[0], methods=["lora"], fusions=["none"])
    names = [cell.setting.name.partition("-")[2] for cell in make_plan(suite).cells]
    assert names == ["", "v1-model", "mine-v2-model", "other", "v2-model"]


def test_absent_data_is_left_out_with_a_reason_or_an_error(
    toy_suite: MakeSuite, mapping: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("TOY_DATA", raising=False)
    far = {"train": "${TOY_DATA}/train.jsonl", "test": "${TOY_DATA}/test.jsonl"}
    suite = toy_suite(data={**mapping["data"], "far": far})
    assert "the variable TOY_DATA is not set" in make_plan(suite).skipped["far"]
    with pytest.raises(DataError, match=r"data set 'far' is absent: .* TOY_DATA is not set"):
        make_plan(suite, require_data=True)
    monkeypatch.setenv("TOY_DATA", str(tmp_path / "nowhere"))
    assert make_plan(suite).skipped["far"] == "there is no file ${TOY_DATA}/train.jsonl"
    monkeypatch.setenv("TOY_DATA", str(tmp_path))
    plan = make_plan(suite)
    assert not plan.skipped
    assert str(tmp_path) not in json.dumps(
        [cell.settings({}) for cell in plan.cells if cell.setting.data.name == "far"]
    )


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"seeds": [0, 1, 2]}, True),
        ({"methods": ["head", "lora", "bitfit"]}, True),
        ({"reference": {"method": "lora"}}, True),
        ({"budget": {"max_steps": 7, "trials": 2}}, False),
        ({"budget": {"max_steps": 6, "trials": 3}}, False),
        ({"budget": {"max_steps": 6, "trials": 2, "tuning_seed": 9}}, False),
        ({"budget": {"max_steps": 6, "trials": 2, "time_limit": 9}}, True),
        ({"controls": ["random"]}, False),
    ],
)
def test_fingerprint_holds_what_decides_the_cell_and_nothing_else(
    toy_suite: MakeSuite, change: dict[str, Any], same: bool
) -> None:
    def fingerprint(suite: Suite) -> str:
        return next(cell.fingerprint for cell in make_plan(suite).cells if cell.name == "kinds-lora-knn-s0")

    assert (fingerprint(toy_suite()) == fingerprint(toy_suite(**change))) == same


def test_row_that_a_cell_stands_for_decides_it_too(toy_suite: MakeSuite) -> None:
    plain = {"name": "none", "label": "plain"}
    prints = [make_plan(toy_suite(fusions=[row, "knn"], seeds=[0])).cells[0].fingerprint for row in ("none", plain)]
    assert prints[0] != prints[1]


def test_search_for_a_seed_takes_no_option_of_a_row(toy_suite: MakeSuite) -> None:
    suite = toy_suite(methods=["lora"], fusions=["knn"], options={"method.r": 4, "fusion.k": 3, "max_length": 32})
    cell = make_plan(suite).cells[0]
    assert cell.settings({})["method.r"] == 4
    assert not [name for name in cell.search.settings if name.startswith(("method.", "fusion."))]
    assert as_run(cell.search.settings).method == "head"


def test_fingerprint_follows_the_content_of_the_data(toy_suite: MakeSuite, mapping: dict[str, Any]) -> None:
    first = make_plan(toy_suite()).cells[0]
    before = first.fingerprint
    train, test = (Path(mapping["data"]["kinds"][split]) for split in ("train", "test"))
    trial = first.study.fingerprint(0)
    test.write_text(test.read_text().replace("old", "small"))
    after = make_plan(toy_suite()).cells[0]
    assert before != after.fingerprint
    assert after.study.fingerprint(0) == trial
    train.write_text(train.read_text().replace("old", "small"))
    assert make_plan(toy_suite()).cells[0].study.fingerprint(0) != trial


def test_trials_never_name_the_test_split(toy_suite: MakeSuite) -> None:
    for cell in make_plan(toy_suite()).cells:
        for number in range(2):
            settings = cell.study.trial(number)
            assert "test" not in settings
            assert settings["fusion"] == "none"
            assert settings["seed"] == 1000


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"options": {"max_lenght": 3}}, "unknown name 'max_lenght'. Did you mean 'max_length'?"),
        ({"methods": [{"name": "lora", "options": {"method.q": 3}}]}, "method 'lora' has no option 'q'"),
        ({"methods": [{"name": "lora", "search": {"method.q": [3, 4]}}]}, "method 'lora' has no option 'q'"),
        ({"fusions": [{"name": "knn", "options": {"fusion.kk": 3}}]}, "unknown option 'fusion.kk'"),
        ({"budget": {"max_steps": 6, "trials": 10}}, "10 trials are asked for, but"),
    ],
)
def test_bad_option_is_found_before_anything_runs(toy_suite: MakeSuite, change: dict[str, Any], message: str) -> None:
    with pytest.raises(PeftRagError) as caught:
        make_plan(toy_suite(**change))
    assert message in str(caught.value)


def test_two_cells_never_share_a_file(mapping: dict[str, Any]) -> None:
    suite = suite_from_mapping({**mapping, "methods": ["lora", {"name": "lora", "label": "lora-knn"}], "seeds": [0]})
    clash = replace(suite.fusions[2], label="knn-knn")
    suite = replace(suite, fusions=(*suite.fusions, clash))
    with pytest.raises(ConfigError, match="two cells are called 'kinds-lora-knn-knn-s0'"):
        make_plan(suite)
