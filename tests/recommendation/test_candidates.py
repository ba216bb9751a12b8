from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from peft_rag.benchmark.space import search_space
from peft_rag.benchmark.suite import Entry
from peft_rag.config import RunConfig, override
from peft_rag.errors import ConfigError, RetrievalError
from peft_rag.job import run
from peft_rag.recommendation.candidates import looks, looks_within, survey
from peft_rag.recommendation.options import SearchOptions
from peft_rag.recommendation.search import pace_of
from peft_rag.recommendation.trial import Trial
from tests.conftest import toy_records, write_jsonl

MakeConfig = Callable[..., RunConfig]

pytestmark = pytest.mark.filterwarnings("ignore:No sentence-transformers model found")


def say(line: str) -> None:
    """Say nothing."""


def test_settings_are_the_benchmarks_and_every_method_comes_before_any_second_choice(make_config: MakeConfig) -> None:
    found = survey(make_config(test=""), SearchOptions(methods=("head", "lora", "bitfit"), trials=2), say)
    assert [len(width) for width in found.by_width] == [5, 3]
    assert [one.method for one in found.by_width[0]] == ["head", "lora", "bitfit", "lora", "bitfit"]
    assert found.by_width[1] == found.by_width[0][:3]
    space = search_space(Entry("lora"))
    for one in found.by_width[0]:
        assert one.fusions == ("none", "knn")
        if one.method == "lora":
            assert all(value in space[name] for name, value in one.settings.items())
    assert found.by_width[1][1].settings == {name: values[0] for name, values in space.items()}


def test_learning_rate_that_is_given_is_not_searched(make_config: MakeConfig) -> None:
    base = make_config(test="", learning_rate=1e-2)
    found = survey(base, SearchOptions(methods=("lora",), trials=9), say).by_width[0]
    assert sorted(one.settings["method.r"] for one in found) == [4, 8, 16]
    assert {one.config(base, 8).training["learning_rate"] for one in found} == {1e-2}


@pytest.mark.parametrize("fusion", ["none", "knn"])
def test_size_is_that_of_the_artefact_that_training_leaves(make_config: MakeConfig, fusion: str) -> None:
    base = make_config(test="")
    options = SearchOptions(methods=("lora",), fusions=(fusion,), trials=1)
    candidate = survey(base, options, say).by_width[0][0]
    result = run(candidate.config(base, 2), say)
    size = json.loads((result.folder / "metrics.json").read_text())["artefact_bytes"]
    assert size <= candidate.size <= size + 20


def test_what_is_too_large_is_named_with_its_bytes_and_smaller_variants_stay(make_config: MakeConfig) -> None:
    base, said = make_config(test=""), []
    options = SearchOptions(methods=("lora",), fusions=("none",), trials=9)
    sizes = sorted({one.size for one in survey(base, options, say).by_width[0]})
    assert len(sizes) == 3
    tight = SearchOptions(methods=("lora",), fusions=("none",), trials=9, budget_bytes=sizes[1])
    found = survey(base, tight, said.append)
    assert {one.settings["method.r"] for one in found.by_width[0]} == {4, 8}
    assert said == [
        f"left out: lora (r 16), whose artefact takes {sizes[2]:,} bytes, more than the {sizes[1]:,} of --budget-bytes"
    ]
    with pytest.raises(ConfigError, match=rf"the smallest is lora \(r 4\) with {sizes[0]:,} bytes. Raise the budget"):
        survey(base, SearchOptions(methods=("lora",), fusions=("none",), budget_bytes=sizes[0] - 1), say)


def test_method_that_does_not_fit_is_named_with_the_reason(make_config: MakeConfig) -> None:
    said: list[str] = []
    found = survey(make_config(test=""), SearchOptions(methods=("adaption-prompt", "head")), said.append)
    assert [one.method for one in found.by_width[0]] == ["head"]
    assert said
    assert all(line.startswith("left out: adaption-prompt") and "does not fit: " in line for line in said)
    with pytest.raises(ConfigError, match="none of the methods can be used: adaption-prompt"):
        survey(make_config(test=""), SearchOptions(methods=("adaption-prompt",)), say)


def test_fusions_that_train_alike_share_a_candidate_and_others_have_their_own(make_config: MakeConfig) -> None:
    options = SearchOptions(methods=("head",), fusions=("concat", "knn", "none"))
    found = survey(make_config(test="", fusion="concat", max_length=60), options, say).by_width[0]
    assert [one.fusions for one in found] == [("none", "knn"), ("concat",)]


def test_fusion_that_the_corpus_cannot_serve_is_left_out(make_config: MakeConfig, tmp_path: Path) -> None:
    texts = [{"id": one["id"], "text": one["text"]} for one in toy_records(9, 5)]
    base = make_config(test="", corpus=write_jsonl(tmp_path / "corpus.jsonl", texts))
    said: list[str] = []
    found = survey(base, SearchOptions(methods=("head",)), said.append)
    assert [one.fusions for one in found.by_width[0]] == [("none",)]
    assert "left out: knn, a fusion that cannot be used here: document '5-0'" in said[0]
    with pytest.raises(RetrievalError, match="has no label"):
        survey(base, SearchOptions(methods=("head",), fusions=("knn",)), say)


@pytest.mark.parametrize(("steps", "every"), [(120, 30), (30, 10), (40, 10), (13, 13), (25, 5), (1, 1)])
def test_runs_look_at_validation_evenly_and_at_their_end(make_config: MakeConfig, steps: int, every: int) -> None:
    given = looks(make_config(), steps)
    assert (given["max_steps"], given["eval_steps"], given["save_steps"]) == (steps, every, every)
    assert looks_within(make_config(), steps) == steps // every
    own = override(make_config(), training={"eval_strategy": "epoch"})
    assert (looks(own, steps), looks_within(own, steps)) == ({"max_steps": steps}, 0)


def test_pace_of_a_step_holds_no_look_at_validation(make_config: MakeConfig) -> None:
    # Two steps of 1 s, a look of 10 texts after each, 5 s of loading: a long run looks four times.
    trial = Trial("done", 2, seconds=5 + 2 + 2 * 10 * 0.3, train_seconds=2 + 2 * 10 * 0.3, pass_seconds=0.3)
    pace = pace_of(trial, make_config(), 10)
    assert (pace.run, pace.step) == pytest.approx((5 + 4 * 10 * 0.3, 1.0))
    assert pace_of(trial, override(make_config(), training={"eval_strategy": "no"}), 10).step == pytest.approx(4.0)
    assert pace_of(replace(trial, pass_seconds=9.0), make_config(), 10).step == pytest.approx(0.1 * 4.0)
