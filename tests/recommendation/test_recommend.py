from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from peft_rag import RetrievalAugmentedModel
from peft_rag.artefact import read_manifest
from peft_rag.cli.flags import read_flags
from peft_rag.config import RunConfig, from_mapping, override
from peft_rag.errors import ArtefactError, ConfigError, DataError, TrainingError
from peft_rag.job import run
from peft_rag.recommendation import recommend as module
from peft_rag.recommendation.options import SearchOptions
from peft_rag.recommendation.recommend import recommend
from peft_rag.recommendation.search import Clock
from peft_rag.recommendation.trial import Trial, Trials
from tests.conftest import toy_records, write_jsonl

MakeConfig = Callable[..., RunConfig]

pytestmark = pytest.mark.filterwarnings("ignore:No sentence-transformers model found")

SMALL = SearchOptions(methods=("head", "bitfit"), fusions=("none",), trials=1)


def say(line: str) -> None:
    """Say nothing."""


@pytest.mark.slow
def test_search_leaves_the_artefact_of_the_command_it_names_with_its_reasons(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    original = Trials.run
    monkeypatch.setattr(Trials, "run", lambda self, *given: read.append(self.base.test) or original(self, *given))
    said: list[str] = []
    options = SearchOptions(methods=("head", "lora", "bitfit"), trials=2)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "elsewhere")
    found = recommend(make_config(max_steps=30, fusion="knn"), options, said.append)

    report = found.report
    assert report["rungs"] == [{"candidates": 5, "steps": 10}, {"candidates": 2, "steps": 30}]
    assert set(read) == {""}
    assert len(report["candidates"]) == 5
    assert sorted(one["rung"] for one in report["candidates"]) == [1, 1, 1, 2, 2]
    assert report["test_examples"] == 30
    assert (
        report["recommended"]["artefact_bytes"]
        == json.loads((found.folder / "metrics.json").read_text())["artefact_bytes"]
    )
    assert json.loads((found.folder / "recommendation.json").read_text()) == json.loads(json.dumps(report))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "elsewhere",
        "out",
        "test.jsonl",
        "train.jsonl",
        "validation.jsonl",
    ]

    read_manifest(found.folder)
    model = RetrievalAugmentedModel.from_pretrained(str(found.folder))
    assert model.predict(["iron zinc nickel"])[0].labels == ("metal",)
    assert model.reports["default"].method == report["recommended"]["method"]

    words = (found.folder / "recommendation.md").read_text()
    assert words.startswith(f"# Recommended: {report['recommended']['method']}")
    assert report["command"] in words
    assert words.count("| recommended |") == 1
    assert "which nothing was chosen by" in words
    assert "\n".join(said).count(words.strip()) == 1
    assert said[-1] == f"saved: {found.folder}"

    flags = read_flags(shlex.split(report["command"])[2:])
    again = run(from_mapping({**flags, "output": str(tmp_path / "again")}), say)
    same = json.loads((again.folder / "metrics.json").read_text())
    assert same["test"] == report["recommended"]["test"]
    name = "adapter_model.safetensors"
    assert (again.folder / name).read_bytes() == (found.folder / name).read_bytes()


def test_interrupted_search_goes_on_without_doing_anything_twice(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, done = make_config(max_steps=4), []
    original = Trials.run

    def counted(self: Trials, candidate: Any, steps: int) -> Trial:
        if len(done) == 1:
            done.append("cut off")
            raise KeyboardInterrupt
        done.append(candidate.method)
        return original(self, candidate, steps)

    monkeypatch.setattr(Trials, "run", counted)
    said: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        recommend(config, SMALL, said.append)
    assert said[-1] == f"stopped; the trials so far lie in '{tmp_path / 'out'}.partial', and --resume goes on with them"
    with pytest.raises(ArtefactError, match=r"holds an unfinished run. Go on with it by --resume"):
        recommend(config, SMALL, say)
    with pytest.raises(ConfigError, match="seed changed since it was interrupted"):
        recommend(override(config, resume=True, seed=5), SMALL, say)
    found = recommend(override(config, resume=True), SMALL, say)
    assert done == ["head", "cut off", "bitfit"]
    assert [one["status"] for one in found.report["candidates"]] == ["done", "done"]
    with pytest.raises(ArtefactError, match="already holds"):
        recommend(config, SMALL, say)


def test_candidate_that_fails_is_shown_and_the_others_go_on(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Trials.run

    def unlucky(self: Trials, candidate: Any, steps: int) -> Trial:
        trial = original(self, candidate, steps) if candidate.method == "head" else Trial("done", steps, 1.0)
        return trial if candidate.method == "head" else replace(trial, status="diverged", error="the loss is nan")

    monkeypatch.setattr(Trials, "run", unlucky)
    found = recommend(make_config(max_steps=4), SMALL, say)
    assert found.report["recommended"]["method"] == "head"
    assert "diverged: the loss is nan" in (found.folder / "recommendation.md").read_text()
    with pytest.raises(TrainingError, match=r"none of 1 candidates could be trained; the first, bitfit.* diverged"):
        recommend(
            override(make_config(max_steps=4), output=str(found.folder.with_name("other"))),
            replace(SMALL, methods=("bitfit",)),
            say,
        )


def test_time_is_kept_by_fewer_steps_and_a_search_without_time_says_how_much_it_needs(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = {"run": 2.0, "step": 1.0}
    now = [0.0]
    trained: list[int] = []

    def timed(self: Trials, candidate: Any, steps: int) -> Trial:
        trained.append(steps)
        given = original(self, candidate, 2)
        now[0] += seconds["run"] + steps * seconds["step"]
        train = steps * seconds["step"]
        return replace(given, steps=steps, seconds=seconds["run"] + train, train_seconds=train, pass_seconds=0.0)

    original = Trials.run
    monkeypatch.setattr(Trials, "run", timed)
    monkeypatch.setattr(Clock, "passed", property(lambda self: now[0]))
    with pytest.raises(
        ConfigError,
        match=r"--budget-minutes 0.1 is too short: one trial and the final run, with 30 test texts, and what comes "
        r"before them take about 0\.2 minutes here. Give more\.",
    ):
        recommend(make_config(max_steps=60), replace(SMALL, budget_minutes=0.1), say)
    now[0] = 0.0
    trained.clear()
    found = recommend(make_config(max_steps=60), replace(SMALL, budget_minutes=1.0), say)
    # The pace: 4 s. Then two trials of 2 s and the final run of 2 s beside the steps of 1 s: (60 - 4 - 6) / 3 = 16.
    assert trained == [2, 16, 16]
    assert found.report["recommended"]["steps"] == 16
    assert any("the time allows 16 steps" in note for note in found.report["notes"])
    assert now[0] <= 60 - 2 - 16


def test_rung_that_takes_too_long_is_cut_short_and_says_so(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    original = Trials.run

    def slower_and_slower(self: Trials, candidate: Any, steps: int) -> Trial:
        given = original(self, candidate, 2)
        took = 1.0 if steps == 2 else 25.0
        now[0] += took
        return replace(given, steps=steps, seconds=took, train_seconds=took - 0.5, pass_seconds=0.0)

    monkeypatch.setattr(Trials, "run", slower_and_slower)
    monkeypatch.setattr(Clock, "passed", property(lambda self: now[0]))
    found = recommend(make_config(max_steps=40), replace(SMALL, budget_minutes=0.5), say)
    assert len(found.report["candidates"]) == 1
    assert any("time ran out in rung 1: 1 of its 2 candidates" in note for note in found.report["notes"])


def test_validation_too_small_to_choose_by_is_one_line_and_a_small_one_is_said(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    few = write_jsonl(tmp_path / "few.jsonl", toy_records(4, 7))
    with pytest.raises(DataError, match=r"validation has 4 examples, too few to choose by.*--validation_share"):
        recommend(make_config(validation=few), SMALL, say)
    assert not list(tmp_path.glob("out*"))
    assert "validation has 30 examples" in module.caution(30)[0]
    assert re.search(r"fewer than 5 of them \(17 points\)", module.caution(30)[0])
    assert module.caution(200) == []


def test_mistake_in_the_test_split_is_found_before_anything_is_trained(make_config: MakeConfig, tmp_path: Path) -> None:
    bad = write_jsonl(tmp_path / "bad.jsonl", [{"text": "apple", "label": "frit"}])
    with pytest.raises(DataError, match="Did you mean 'fruit'"):
        recommend(make_config(test=bad), SMALL, say)
    assert not list(tmp_path.glob("out*"))
