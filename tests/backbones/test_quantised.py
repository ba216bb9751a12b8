"""Backbones in 4 and 8 bits."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from peft_rag.backbone import load_backbone
from peft_rag.errors import BackboneError
from peft_rag.methods import attach
from peft_rag.testing import TINY_BACKBONES
from peft_rag.testing.fusions import word_tokenizer

needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is absent (extra quantized)"
)


@pytest.fixture
def folder(tmp_path: Path) -> str:
    TINY_BACKBONES["llama"]().save_pretrained(tmp_path)
    word_tokenizer().save_pretrained(tmp_path)
    return str(tmp_path)


@needs_bitsandbytes
@pytest.mark.parametrize(("load_in", "stored"), [("4bit", torch.uint8), ("8bit", torch.int8)])
def test_quantised_backbone_is_smaller_near_and_the_same_at_each_load(
    folder: str, load_in: str, stored: torch.dtype
) -> None:
    whole = load_backbone(folder, head="causal")
    small = load_backbone(folder, head="causal", load_in=load_in)
    assert small.name == f"{load_in}:{folder}"
    assert small.model.model.layers[0].self_attn.q_proj.weight.dtype is stored
    assert small.model.get_memory_footprint() < 0.7 * whole.model.get_memory_footprint()
    ids = torch.tensor([[4, 5, 6, 7, 8]])
    with torch.no_grad():
        found, wanted = small.model(input_ids=ids).logits, whole.model(input_ids=ids).logits
    assert not torch.equal(found, wanted)
    assert torch.cosine_similarity(found.flatten(), wanted.flatten(), dim=0) > 0.95
    assert load_backbone(small.name, head="causal").fingerprint == small.fingerprint != whole.fingerprint


@needs_bitsandbytes
def test_lora_trains_on_four_bits_and_leaves_them(folder: str) -> None:
    backbone = load_backbone(folder, head="causal", load_in="4bit")
    before = backbone.model.model.layers[0].mlp.up_proj.weight.clone()
    model, report = attach(backbone.model, "lora")
    assert report.trainable_parameters > 0
    ids = torch.tensor([[4, 5, 6, 7, 8]])
    optimiser = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(5):
        loss = model(input_ids=ids, labels=ids).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert torch.equal(model.get_base_model().model.layers[0].mlp.up_proj.weight, before)
    assert model.peft_config["default"].base_model_name_or_path == folder


def test_without_bitsandbytes_the_error_says_how_to_get_it(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "bitsandbytes" else found(name))
    with pytest.raises(
        BackboneError, match=r"cannot be loaded in 4bit: bitsandbytes is not installed. Run: pip install"
    ):
        load_backbone(folder, load_in="4bit")


@needs_bitsandbytes
def test_device_that_cannot_is_named(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(raise_exception: bool) -> bool:
        raise RuntimeError("none of the available devices is supported")

    monkeypatch.setattr("transformers.integrations.validate_bnb_backend_availability", refuse)
    with pytest.raises(BackboneError, match=r"none of the available devices.* If this device cannot compute in 8bit"):
        load_backbone(folder, load_in="8bit")
