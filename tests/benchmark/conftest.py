from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from peft_rag.benchmark.suite import Suite, suite_from_mapping


@pytest.fixture
def mapping(tiny_bert: str, toy_data: dict[str, str]) -> dict[str, Any]:
    """A suite that a tiny model runs in seconds, as its YAML file gives it."""
    return {
        "name": "toy",
        "data": {"kinds": dict(toy_data)},
        "backbones": [tiny_bert],
        "methods": ["head", "lora"],
        "fusions": ["none", {"name": "concat", "options": {"fusion.k": 1, "max_length": 48}}, "knn"],
        "seeds": [0, 1],
        "budget": {"max_steps": 6, "trials": 2},
        "options": {"max_length": 24, "encoder": tiny_bert},
    }


@pytest.fixture
def toy_suite(mapping: dict[str, Any]) -> Callable[..., Suite]:
    """Make the suite with some keys changed."""
    return lambda **changes: suite_from_mapping({**mapping, **changes})
