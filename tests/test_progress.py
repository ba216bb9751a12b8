from __future__ import annotations

import logging
from pathlib import Path

import pytest

from peft_rag.cli.progress import hold_back_chatter
from peft_rag.config import from_mapping
from peft_rag.job import run
from tests.test_job import settings


@pytest.mark.parametrize("shown", [True, False])
def test_training_shows_its_steps_beside_libraries_that_are_held_back(
    tiny_bert: str,
    toy_data: dict[str, str],
    tmp_path: Path,
    shown: bool,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    for name in ("transformers", "peft", "datasets", "sentence_transformers", "accelerate"):
        caplog.set_level(logging.getLogger(name).level, name)  # what it was, to be set again after the test
    hold_back_chatter()
    given = settings(tiny_bert, toy_data, tmp_path / "out", max_steps=2, fusion="none")
    if shown:
        del given["disable_tqdm"]
    run(from_mapping(given), say=lambda line: None)
    assert ("training: 100%" in capsys.readouterr().err) is shown
