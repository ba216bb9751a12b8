from __future__ import annotations

from typing import Any

import pytest

from peft_rag.benchmark.suite import read_suite, suite_from_mapping
from peft_rag.errors import ConfigError, PeftRagError


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
        ({"seeds": ["one"]}, "seeds: 'one' is no whole number"),
        ({"controls": ["randon"]}, "no control 'randon'. Did you mean 'random'?"),
        ({"reference": {"method": "hed"}}, "no method of the reference row 'hed'. Did you mean 'head'?"),
        ({"budget": {"max_step": 3}}, "unknown key 'max_step'. Did you mean 'max_steps'?"),
        ({"budget": {"max_steps": 0}}, "budget.max_steps is 0"),
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
    with pytest.raises(ConfigError, match=r"'nowhere.yaml' does not exist"):
        read_suite("nowhere.yaml")
