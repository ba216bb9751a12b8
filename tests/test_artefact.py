from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BartConfig, BartModel

from peft_rag.artefact import load
from peft_rag.artefact_files import read_manifest
from peft_rag.backbone import load_backbone
from peft_rag.cli import main
from peft_rag.errors import ArtefactError, FingerprintError, MethodError
from peft_rag.fusion.none import NoFusion
from peft_rag.model import RetrievalAugmentedModel
from peft_rag.publishing import publish_folder
from peft_rag.tasks.text_classification import TextClassification
from peft_rag.testing import TINY_BACKBONES

TASK = TextClassification(labels=("fruit", "metal", "river"))


def make_model(folder: str, method: str = "lora", **options: Any) -> RetrievalAugmentedModel:
    """A model whose every trained tensor is random, so that nothing can be right by being zero."""
    model = RetrievalAugmentedModel(load_backbone(folder), TASK, NoFusion(), max_length=32)
    model.attach(method, **options)
    torch.manual_seed(1)
    with torch.no_grad():
        for tensor in model.parameters():
            if tensor.requires_grad:
                tensor.add_(torch.randn_like(tensor) * 0.3)
    return model.eval()


def answers(model: RetrievalAugmentedModel) -> torch.Tensor:
    from peft_rag.fusion.base import Split
    from peft_rag.tasks.base import Example

    texts = ["apple pear and the plum", "iron", "the old danube in the new volga"]
    return model.outputs(Split([Example(str(n), text) for n, text in enumerate(texts)])).log_probs


@pytest.fixture
def saved(tiny_bert: str, tmp_path: Path) -> Path:
    return make_model(tiny_bert).save_pretrained(tmp_path / "saved")


def rewrite(folder: Path, change: Callable[[dict[str, Any]], Any], *, sealed: bool = True) -> None:
    """Alter an artefact's manifest, as it is since or as it was before it held a hash of itself."""
    manifest = json.loads((folder / "peft_rag.json").read_text())
    change(manifest)
    if not sealed:
        del manifest["sha256"]
    (folder / "peft_rag.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("method", ["lora", "adapter", "bitfit", "prompt-tuning", "full", "head"])
def test_load_gives_the_same_outputs_bit_for_bit(tiny_bert: str, tmp_path: Path, method: str) -> None:
    model = make_model(tiny_bert, method)
    model.save_pretrained(tmp_path / "saved")
    again = load(str(tmp_path / "saved"))
    assert torch.equal(answers(again), answers(model))
    assert again.trained_state() == {}
    names = {path.name for path in (tmp_path / "saved").iterdir()}
    expected = {"adapter_config.json", "adapter_model.safetensors", "head.safetensors", "peft_rag.json"}
    assert names == expected | {"metrics.json", "README.md"}


def test_what_is_kept_of_a_saved_model_is_that_of_its_task_too(saved: Path, tmp_path: Path) -> None:
    """Two artefacts may hold the same tensors and read texts differently."""
    other = tmp_path / "other"
    shutil.copytree(saved, other)
    rewrite(other, lambda about: about["task"]["settings"].update(text_field="body"), sealed=False)
    kept = [load(str(folder)).saved_as["default"] for folder in (saved, saved, other)]
    assert kept[0] == kept[1] != kept[2]


@pytest.mark.parametrize("family", ["t5", "bart", "encoder_decoder"])
def test_encoder_of_an_encoder_decoder_is_a_backbone(tiny_bert: str, tmp_path: Path, family: str) -> None:
    folder = tmp_path / family
    shutil.copytree(tiny_bert, folder)
    torch.manual_seed(0)
    if family == "bart":
        sizes = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64}
        heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
        BartModel(BartConfig(vocab_size=40, max_position_embeddings=64, **sizes, **heads)).save_pretrained(folder)
    else:
        TINY_BACKBONES[family]().save_pretrained(folder)
    model = make_model(str(folder))
    assert not any("decoder" in name for name, _ in model.named_parameters())
    model.save_pretrained(tmp_path / "saved")
    assert torch.equal(answers(load(str(tmp_path / "saved"))), answers(model))


def test_saved_backbone_name_is_the_one_the_user_gave(tiny_bert: str, saved: Path) -> None:
    assert json.loads((saved / "adapter_config.json").read_text())["base_model_name_or_path"] == tiny_bert


def test_save_refuses_a_model_without_a_method(tiny_bert: str, tmp_path: Path) -> None:
    model = RetrievalAugmentedModel(load_backbone(tiny_bert), TASK, max_length=32)
    with pytest.raises(ArtefactError, match=r"attach a method first \(model.attach\('lora'\)\)"):
        model.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_save_leaves_nothing_when_it_fails_in_the_middle(
    tiny_bert: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model(tiny_bert)

    def fail(*arguments: Any) -> str:
        raise OSError("disk full")

    monkeypatch.setattr("peft_rag.card.model_card", fail)
    with pytest.raises(OSError, match="disk full"):
        model.save_pretrained(tmp_path / "saved")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors", "head.safetensors"])
@pytest.mark.parametrize("damage", ["truncated", "altered", "missing"])
def test_damaged_file_is_refused_before_it_is_read(saved: Path, name: str, damage: str) -> None:
    content = (saved / name).read_bytes()
    if damage == "missing":
        (saved / name).unlink()
    else:
        half = len(content) // 2
        changed = content[:half] if damage == "truncated" else content[:half] + b"~" + content[half + 1 :]
        (saved / name).write_bytes(changed)
    message = f"misses {name}" if damage == "missing" else f"{name} was truncated or altered"
    with pytest.raises(ArtefactError, match=message):
        load(str(saved))


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": 1}', '{"format": 99, "versions": 5}', "null"])
def test_damaged_manifest_is_refused(saved: Path, content: str) -> None:
    (saved / "peft_rag.json").write_text(content)
    with pytest.raises(ArtefactError, match=r"peft_rag.json (is damaged|has another format|was altered)"):
        load(str(saved))


@pytest.mark.parametrize("sealed", [True, False])
@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda about: about["files"].update({"../../etc/passwd": "sha256:0"}), "files.../../etc/passwd"),
        (lambda about: about["files"].pop("head.safetensors"), "files.head.safetensors"),
        (lambda about: about.update(files=["head.safetensors"]), "files.adapter_config.json"),
        (lambda about: about.pop("task"), "task.name"),
        (lambda about: about["task"].update(settings=None), "task.settings"),
        (lambda about: about["backbone"].pop("fingerprint"), "backbone.fingerprint"),
        (lambda about: about.pop("knowledge"), "knowledge.corpus.source"),
        (lambda about: about.update(knowledge={"corpus": {}}), "knowledge.corpus.source"),
    ],
)
def test_manifest_of_another_shape_is_refused(saved: Path, change: Any, part: str, sealed: bool) -> None:
    rewrite(saved, change, sealed=sealed)
    with pytest.raises(ArtefactError, match=rf"peft_rag.json was altered: {re.escape(part)} is not as it is saved"):
        load(str(saved))


def test_manifest_whose_labels_were_reordered_is_refused(saved: Path) -> None:
    rewrite(saved, lambda about: about["task"]["settings"]["labels"].reverse())
    with pytest.raises(ArtefactError, match="was altered since it was saved: it is not what its hash says"):
        load(str(saved))


def test_artefact_without_a_hash_of_its_manifest_is_loaded(saved: Path) -> None:
    before = answers(load(str(saved)))
    rewrite(saved, lambda about: None, sealed=False)
    assert torch.equal(answers(load(str(saved))), before)


def test_head_of_other_labels_is_refused(saved: Path) -> None:
    rewrite(saved, lambda about: about["task"]["settings"]["labels"].pop(), sealed=False)
    with pytest.raises(
        ArtefactError, match=r"head.safetensors does not fit what peft_rag.json describes: .*size mismatch"
    ):
        load(str(saved))


def test_artefact_saved_again_keeps_its_measurements_until_its_weights_change(tiny_bert: str, tmp_path: Path) -> None:
    make_model(tiny_bert).save_pretrained(tmp_path / "a", metrics={"train_seconds": 12.5})
    model = load(str(tmp_path / "a"))
    model.save_pretrained(tmp_path / "b")
    for name in ("metrics.json", "README.md"):
        assert (tmp_path / "b" / name).read_text() == (tmp_path / "a" / name).read_text()
    model.forget()
    model.save_pretrained(tmp_path / "c")
    assert "train_seconds" not in json.loads((tmp_path / "c" / "metrics.json").read_text())


def test_measurements_of_another_shape_are_refused_when_saving_and_can_be_left_out(saved: Path, tmp_path: Path) -> None:
    (saved / "metrics.json").write_text('{"arms": {"none": 1}}')
    model = load(str(saved))
    with pytest.raises(ArtefactError, match=r"no model card .* metrics=\{\} to leave them out"):
        model.save_pretrained(tmp_path / "again")
    model.save_pretrained(tmp_path / "again", metrics={})
    (saved / "metrics.json").write_text("[")
    assert load(str(saved)).measured == {"default": {}}


@pytest.mark.parametrize("name", ["adapter_model.bin", "model.pkl", "state.pt"])
def test_pickle_is_refused_unread(saved: Path, name: str) -> None:
    (saved / name).write_bytes(b"cos\nsystem\n(S'touch owned'\ntR.")
    with pytest.raises(ArtefactError, match=f"holds {name}, a pickle, refused because it can run code"):
        read_manifest(saved)


def test_load_says_what_to_do_when_the_folder_is_none(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match=r"is not a folder. Name the folder that --output made, or a hub id"):
        load(str(tmp_path / "nothing"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ArtefactError, match=r"is no artefact: peft_rag.json is missing"):
        load(str(tmp_path / "empty"))
    with pytest.raises(ArtefactError, match="neither a folder here nor reachable on the hub"):
        load("someone/some-adapter")


def test_push_checks_the_artefact_and_says_what_failed(
    saved: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pushed: dict[str, Any] = {}

    class Hub:
        def create_repo(self, repo_id: str, **options: Any) -> None:
            if repo_id == "some/where-else":
                raise RuntimeError("401 Unauthorized")

        def upload_folder(self, **options: Any) -> str:
            pushed.update(options, names=sorted(path.name for path in Path(options["folder_path"]).iterdir()))
            return "https://hub/some/adapter"

    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    assert publish_folder(saved, "some/adapter") == "https://hub/some/adapter"
    assert "adapter_model.safetensors" in pushed["names"]
    with pytest.raises(ArtefactError, match=r"cannot push to 'some/where-else': 401 Unauthorized\. Check the name"):
        publish_folder(saved, "some/where-else")
    assert main(["publish", str(saved), "some/adapter"]) == 0
    assert re.search(r"saved \(\d+ kB\) is at https://hub/some/adapter", capsys.readouterr().out)
    (saved / "head.safetensors").write_bytes(b"")
    assert main(["publish", str(saved), "some/adapter"]) == 2
    assert "head.safetensors was truncated or altered" in capsys.readouterr().err


def test_model_push_to_hub_publishes_the_active_adapter(tiny_bert: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, Any]] = []

    def take(folder: Path, repo_id: str, *, private: bool) -> str:
        seen.append(read_manifest(folder))
        return repo_id

    monkeypatch.setattr("peft_rag.publishing.publish_folder", take)
    assert make_model(tiny_bert, "bitfit").push_to_hub("me/bitfit", private=True) == "me/bitfit"
    assert seen[0]["method"]["name"] == "bitfit"


def test_backbone_mismatch_is_an_error_that_says_what_differs(tiny_bert: str, saved: Path) -> None:
    rewrite(saved, lambda about: about["backbone"].update(fingerprint="sha256:" + "0" * 64), sealed=False)
    with pytest.raises(FingerprintError, match=r"trained on backbone .* sha256:000000000000…, but .* is sha256:"):
        load(str(saved))
    assert load(str(saved), allow_backbone_mismatch=True)


def test_two_adapters_with_their_own_labels_share_one_backbone(tiny_bert: str, tmp_path: Path) -> None:
    model = make_model(tiny_bert)
    first = answers(model)
    report = model.add_adapter("colours", TextClassification(labels=("red", "blue")))
    assert report.adapter_name == "colours"
    assert answers(model).shape == (3, 2)
    model.save_pretrained(tmp_path / "colours")
    model.set_adapter("default")
    assert torch.equal(answers(model), first)
    assert load(str(tmp_path / "colours")).task.to_dict()["labels"] == ("red", "blue")
    with pytest.raises(MethodError, match=r"no adapter 'shapes'. There are: default, colours"):
        model.set_adapter("shapes")
    with pytest.raises(MethodError, match="an adapter 'colours' is there already"):
        model.add_adapter("colours", TASK)
    with pytest.raises(MethodError, match="a method is attached already"):
        model.attach("lora")


def test_disabled_adapter_gives_the_frozen_backbone_and_comes_back(tiny_bert: str) -> None:
    for method in ("lora", "adapter", "bitfit", "prompt-tuning", "head"):
        model = make_model(tiny_bert, method)
        tuned = answers(model)
        plain = RetrievalAugmentedModel(load_backbone(tiny_bert), TASK, max_length=32)
        plain.head.load_state_dict(model.head.state_dict())
        with model.disable_adapter():
            assert torch.equal(answers(model), answers(plain)), method
        assert torch.equal(answers(model), tuned), method


def test_merge_keeps_the_answers_or_says_that_it_cannot(tiny_bert: str) -> None:
    for method in ("lora", "bitfit", "full"):
        model = make_model(tiny_bert, method)
        before = answers(model)
        model.merge()
        assert torch.allclose(answers(model), before, atol=1e-5), method
    with pytest.raises(MethodError, match="method 'adapter' cannot be merged"):
        make_model(tiny_bert, "adapter").merge()


def test_same_artefact_is_loaded_wherever_the_folder_is_copied(saved: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(saved, tmp_path / "elsewhere")
    assert torch.equal(answers(load(str(copied))), answers(load(str(saved))))
