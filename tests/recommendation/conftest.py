from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from peft_rag.config import RunConfig, from_mapping


@pytest.fixture
def make_config(tiny_bert: str, toy_data: dict[str, str], tmp_path: Path) -> Callable[..., RunConfig]:
    """Make a run on toy data that a tiny backbone learns in a second."""

    def make(**changes: Any) -> RunConfig:
        given = {
            **toy_data,
            "backbone": tiny_bert,
            "encoder": tiny_bert,
            "max_length": 24,
            "fusion": "knn",
            "output": str(tmp_path / "out"),
        }
        return from_mapping({**given, **changes})

    return make
