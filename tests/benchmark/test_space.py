from __future__ import annotations

from collections import Counter

import pytest

from peft_rag import registry
from peft_rag.benchmark.space import search_space, trial_points
from peft_rag.benchmark.suite import Entry
from peft_rag.config import from_mapping
from peft_rag.errors import ConfigError
from peft_rag.methods import resolve
from peft_rag.methods.options import build_config

UNAVAILABLE = {"shadow", "xlora", "trainable-tokens"}


@pytest.mark.parametrize("name", sorted(set(registry.names(registry.METHODS)) - UNAVAILABLE))
def test_every_installed_method_has_a_space_of_rates_and_one_knob_that_it_accepts(name: str) -> None:
    space = search_space(Entry(name))
    assert space["learning_rate"][0] == resolve(name).learning_rate
    assert len(space) == 2
    for point in trial_points(space, 4):
        config = from_mapping({"train": "a", "output": "b", "method": name, **point})
        build_config(resolve(name), name, config.part_options("method"))


def test_trials_begin_with_the_defaults_are_distinct_and_use_values_evenly() -> None:
    space = {"learning_rate": (3.0, 1.0, 9.0), "method.r": (8, 4, 16)}
    points = trial_points(space, 6)
    assert points[0] == {"learning_rate": 3.0, "method.r": 8}
    assert len({tuple(point.values()) for point in points}) == 6
    for axis in space:
        assert set(Counter(point[axis] for point in points).values()) == {2}
    assert trial_points(space, 6) == points
    assert trial_points(space, 4) == points[:4]


def test_suite_may_name_its_own_values_and_fix_others() -> None:
    entry = Entry("lora", options={"method.r": 4}, search={"learning_rate": (1e-3, 2e-3), "method.lora_alpha": (8, 16)})
    assert search_space(entry) == {"learning_rate": (1e-3, 2e-3), "method.lora_alpha": (8, 16)}
    assert "method.r" not in search_space(Entry("lora", options={"method.r": 4}))
    assert search_space(Entry("bitfit"))["method.norm_scales"] == (False, True)
    assert search_space(Entry("head"))["weight_decay"][0] == 0.01


def test_more_trials_than_settings_is_an_error() -> None:
    with pytest.raises(ConfigError, match="3 trials are asked for, but learning_rate has 2 settings"):
        trial_points({"learning_rate": (1.0, 2.0)}, 3)
