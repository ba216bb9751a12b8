"""Data and models of the same name that hold something else are not taken for each other."""

from __future__ import annotations

from pathlib import Path

import pytest

from peft_rag.contents import content_hash, held_by


def test_split_of_a_saved_folder_is_told_by_its_files(tmp_path: Path) -> None:
    (tmp_path / "saved/train").mkdir(parents=True)
    (tmp_path / "saved/train/data.arrow").write_text("one")
    for source in (f"{tmp_path}/saved:train", f"{tmp_path}/saved:train[:5]", f"{tmp_path}/saved"):
        (tmp_path / "saved/train/data.arrow").write_text("one")
        before = content_hash(source)
        (tmp_path / "saved/train/data.arrow").write_text("other")
        assert content_hash(source) != before
    assert content_hash("demo:wiki-topics/train") == "demo:wiki-topics/train"
    assert content_hash("owner/data:train") == "owner/data:train"


def test_settings_hold_what_options_and_models_name_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny/model.safetensors").write_text("weights")
    (tmp_path / "lora").mkdir()
    (tmp_path / "contexts.jsonl").write_text("{}")
    settings = {
        "backbone": "tiny",
        "encoder": "sentence-transformers/none-such",
        "method": "lora",
        "options": {"task": {"contexts": "contexts.jsonl", "prompt": "Answer, a/b.c: " * 99, "head": "\0.x"}},
        "seed": 3,
    }
    held = held_by(settings)
    assert set(held) == {"backbone", "options.task.contexts"}
    (tmp_path / "tiny/model.safetensors").write_text("others!")
    (tmp_path / "contexts.jsonl").write_text("{ }")
    assert all(held_by(settings)[name] != value for name, value in held.items())
