"""What an artefact was trained with may lie elsewhere now, and may not be exchanged without a word."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from peft_rag.cli import main
from peft_rag.config import from_mapping
from peft_rag.errors import BackboneError, DataError, FingerprintError
from peft_rag.fusion.none import NoFusion
from peft_rag.job import run
from peft_rag.model import RetrievalAugmentedModel
from tests.conftest import toy_records, write_jsonl

load = RetrievalAugmentedModel.from_pretrained


@pytest.fixture
def moved(tiny_bert: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Train with all that it needs named from one place, and stand in another."""
    before = tmp_path / "before"
    shutil.copytree(tiny_bert, before / "bert")
    shutil.copytree(tiny_bert, before / "encoder")
    for name, count in (("train", 40), ("test", 12)):
        write_jsonl(before / f"{name}.jsonl", toy_records(count, count))
    monkeypatch.chdir(before)
    settings: dict[str, Any] = {"train": "train.jsonl", "test": "test.jsonl", "backbone": "bert", "encoder": "encoder"}
    options = {
        "max_length": 32,
        "max_steps": 2,
        "eval_strategy": "no",
        "fusion.space": "retriever",
        "fusion.weight": 0.5,
    }
    run(from_mapping(settings | options | {"output": "out", "disable_tqdm": True}), say=lambda line: None)
    (tmp_path / "now").mkdir()
    monkeypatch.chdir(tmp_path / "now")
    return before


def test_what_has_moved_is_named_by_the_error_and_by_an_option(moved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    places: dict[str, Any] = {}
    for what, lies, kind in (
        ("backbone", "bert", BackboneError),
        ("corpus", "train.jsonl", DataError),
        ("encoder", "encoder", BackboneError),
    ):
        said = rf"It is the {what} of the artefact, which lay at '{lies}' in training; say where it lies now "
        with pytest.raises(kind, match=said) as caught:
            load(moved / "out", **places)
        assert str(caught.value).endswith(f"({what}=…, --{what}).")
        places[what] = str(moved / lies)
    model = load(moved / "out", **places)
    answers = [one.probability for one in model.predict(["apple pear"], explain=True)]

    flags = [word for what, place in places.items() for word in (f"--{what}", place)]
    assert main(["predict", str(moved / "out"), str(moved / "test.jsonl"), *flags]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 12
    model.save_pretrained("again")
    assert [one.probability for one in load("again").predict(["apple pear"])] == answers


def test_a_place_that_is_given_is_taken_at_its_word(moved: Path) -> None:
    with pytest.raises(BackboneError) as caught:
        load(moved / "out", backbone="nowhere")
    assert "of the artefact" not in str(caught.value)


def test_another_encoder_is_refused(moved: Path) -> None:
    from transformers import AutoModel, AutoTokenizer

    other = AutoModel.from_pretrained(moved / "encoder")
    with torch.no_grad():
        other.embeddings.word_embeddings.weight[7, 0] += 1e-3
    other.save_pretrained("other")
    AutoTokenizer.from_pretrained(moved / "encoder").save_pretrained("other")
    places = {"backbone": str(moved / "bert"), "corpus": str(moved / "train.jsonl")}
    with pytest.raises(FingerprintError, match="trained with another version of encoder 'other'"):
        load(moved / "out", encoder="other", **places)


def test_an_index_of_the_documents_is_a_corpus_like_any_other(moved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(moved)
    built = ["index", "build", "kb", "--corpus", "train.jsonl", "--encoder", "encoder"]
    assert main(built) == 0
    [as_before] = load("out").predict(["apple pear"], explain=True)
    [said] = load("out", corpus="kb").predict(["apple pear"], explain=True)
    assert [one.id for one in said.neighbours] == [one.id for one in as_before.neighbours]

    write_jsonl(Path("more.jsonl"), [{"id": "new", "text": "apple pear", "label": "fruit"}])
    assert main(["index", "add", "kb", "--corpus", "more.jsonl"]) == 0
    with pytest.raises(FingerprintError, match=r"trained with a corpus of 40 documents .* but 'kb' has 41"):
        load("out", corpus="kb")
    model = load("out", corpus="kb", allow_corpus_mismatch=True)
    [said] = model.predict(["apple pear"], explain=True)
    assert said.neighbours[0].id == "new"


@pytest.mark.parametrize("change", ["backbone", "corpus", "fusion", "nothing"])
def test_measurements_are_saved_again_only_while_they_are_true(
    change: str, moved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoModel

    monkeypatch.chdir(moved)
    options: dict[str, Any] = {}
    if change == "backbone":
        other = AutoModel.from_pretrained("bert")
        with torch.no_grad():
            other.embeddings.word_embeddings.weight.mul_(3)
        shutil.copytree("bert", "other")
        other.save_pretrained("other")
        options = {"backbone": "other", "allow_backbone_mismatch": True}
    if change == "corpus":
        options = {"corpus": "test.jsonl", "allow_corpus_mismatch": True}
    model = load("out", **options)
    if change == "fusion":
        model.fusion = NoFusion()
    model.save_pretrained("again")
    card, measured = Path("again/README.md").read_text(), json.loads(Path("again/metrics.json").read_text())
    assert ("Not measured." in card) == ("arms" not in measured) == (change != "nothing")


def test_a_corpus_with_fields_of_other_names_can_be_made_an_index(
    moved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = [{"text": one["text"], "kind": one["label"]} for one in toy_records(40, 40)]
    write_jsonl(tmp_path / "now" / "other.jsonl", records)
    write_jsonl(tmp_path / "now" / "asked.jsonl", [{"text": "apple pear"}])
    places = ["--backbone", str(moved / "bert"), "--encoder", str(moved / "encoder"), "--allow_corpus_mismatch"]
    asked = ["predict", str(moved / "out"), "asked.jsonl", *places]
    assert main([*asked, "--corpus", "other.jsonl"]) == 2
    said = capsys.readouterr().err
    assert "Name the field with --label_field kind. Here a corpus is read as in training; of one whose" in said
    built = [
        "index",
        "build",
        "kb",
        "--corpus",
        "other.jsonl",
        "--label_field",
        "kind",
        "--encoder",
        str(moved / "bert"),
    ]
    assert main(built) == 0
    assert main([*asked, "--corpus", "kb"]) == 0


def test_another_tokenizer_on_the_same_weights_is_refused(moved: Path, tmp_path: Path) -> None:
    bert = tmp_path / "bert"
    shutil.copytree(moved / "bert", bert)
    file = bert / "tokenizer.json"
    content = json.loads(file.read_text())
    places = {"corpus": str(moved / "train.jsonl"), "encoder": str(moved / "encoder")}
    assert load(moved / "out", backbone=str(bert), **places).measured["default"]
    for change in ({"normalizer": {"type": "Lowercase"}}, {"pre_tokenizer": {"type": "WhitespaceSplit"}}):
        file.write_text(json.dumps(content | change))
        with pytest.raises(
            FingerprintError, match=r"has the weights that this artefact was trained on, but another tok"
        ):
            load(moved / "out", backbone=str(bert), **places)
        model = load(moved / "out", backbone=str(bert), allow_backbone_mismatch=True, **places)
        assert not model.measured["default"]
    swapped = json.loads(json.dumps(content))
    vocabulary = swapped["model"]["vocab"]
    vocabulary["apple"], vocabulary["iron"] = vocabulary["iron"], vocabulary["apple"]
    file.write_text(json.dumps(swapped))
    with pytest.raises(FingerprintError, match=r"another tokenizer"):
        load(moved / "out", backbone=str(bert), **places)


def test_an_artefact_that_does_not_say_how_its_texts_were_cut_is_loaded(moved: Path) -> None:
    file = moved / "out" / "peft_rag.json"
    about = json.loads(file.read_text())
    assert about["backbone"].pop("tokenizer_fingerprint").startswith("sha256:")
    del about["sha256"]
    file.write_text(json.dumps(about))
    places = {name: str(moved / lies) for name, lies in (("backbone", "bert"), ("encoder", "encoder"))}
    assert load(moved / "out", corpus=str(moved / "train.jsonl"), **places).measured["default"]
