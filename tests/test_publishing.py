"""What is published of an artefact, and that it names no folder of the machine it was made on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from peft_rag.artefact_files import read_manifest
from peft_rag.config import from_mapping
from peft_rag.errors import ArtefactError
from peft_rag.job import run
from peft_rag.model import RetrievalAugmentedModel
from peft_rag.publishing import _named, public_copy
from tests.conftest import toy_records, write_jsonl

load = RetrievalAugmentedModel.from_pretrained
SPLITS = ("train", "test")


@pytest.fixture
def saved(tiny_bert: str, tmp_path: Path) -> Path:
    """Train on files of which whole paths are given."""
    places = {name: write_jsonl(tmp_path / f"{name}.jsonl", toy_records(24, seed)) for seed, name in enumerate(SPLITS)}
    options = {"backbone": tiny_bert, "encoder": tiny_bert, "max_length": 32, "max_steps": 2, "eval_strategy": "no"}
    voting = {"fusion.space": "retriever", "fusion.weight": 0.5, "disable_tqdm": True}
    run(from_mapping({**places, **options, **voting, "output": str(tmp_path / "out")}), say=lambda line: None)
    return tmp_path / "out"


def test_no_file_names_a_folder_of_this_machine_and_the_answers_are_the_same(
    saved: Path, tiny_bert: str, tmp_path: Path
) -> None:
    public = public_copy(saved, tmp_path / "public")
    assert {path.name for path in public.iterdir()} == {path.name for path in saved.iterdir()}
    for path in public.rglob("*"):
        assert str(tmp_path) not in path.read_text(errors="replace"), path
        assert tiny_bert not in path.read_text(errors="replace"), path
    assert "`train.jsonl`" in (public / "README.md").read_text()
    about = read_manifest(public)
    assert (about["backbone"]["name"], about["task"]) == (Path(tiny_bert).name, read_manifest(saved)["task"])
    corpus = str(tmp_path / "train.jsonl")
    again = load(public, backbone=tiny_bert, encoder=tiny_bert, corpus=corpus)
    texts = ["apple pear", "iron and the danube"]
    assert again.predict(texts, explain=True) == load(saved).predict(texts, explain=True)
    assert str(tmp_path) in (saved / "peft_rag.json").read_text()


def test_what_was_altered_is_not_copied(saved: Path, tmp_path: Path) -> None:
    (saved / "head.safetensors").write_bytes(b"")
    with pytest.raises(ArtefactError, match=r"head\.safetensors was truncated or altered"):
        public_copy(saved, tmp_path / "public")
    assert not (tmp_path / "public").exists()


def test_measurements_that_cannot_be_read_are_not_published(saved: Path, tmp_path: Path) -> None:
    (saved / "metrics.json").write_text(f'{{"data": "{tmp_path}/train.jsonl"')
    assert (public_copy(saved, tmp_path / "public") / "metrics.json").read_text().split() == ["{}"]


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ("/data/a.jsonl[:9]", "a.jsonl[:9]"),
        ("warm:/m/bert/", "warm:bert"),
        ("4bit:/m/llama", "4bit:llama"),
        ("~/b.csv", "b.csv"),
        ("C:\\d\\c.tsv", "c.tsv"),
    ],
)
def test_a_place_becomes_its_name_and_what_is_none_stays(place: str, name: str) -> None:
    found: set[str] = set()
    kept: dict[str, Any] = {"hub": "some/model", "sign": "/", "here": "data/a.jsonl", "settings": {"template": "/a/b"}}
    assert _named({"data": [place], **kept}, found) == {"data": [name], **kept}
    assert found == {place}
