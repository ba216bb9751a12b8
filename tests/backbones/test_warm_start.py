"""Encoder-decoders that start as an encoder."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from peft_rag.backbone import load_backbone
from peft_rag.backbone_name import BackboneName
from peft_rag.config import from_mapping
from peft_rag.errors import BackboneError, ConfigError
from peft_rag.methods import attach
from peft_rag.testing import TINY_BACKBONES
from peft_rag.testing.fusions import word_tokenizer
from peft_rag.warm_start import uniform


def test_both_halves_start_as_the_encoder_and_share_its_word_embeddings(tiny_bert: str) -> None:
    backbone, encoder = load_backbone(f"warm:{tiny_bert}", head="seq2seq"), load_backbone(tiny_bert).model
    pair, wanted = backbone.model, encoder.state_dict()
    for half in (pair.encoder, pair.decoder.bert):
        found = half.state_dict()
        assert wanted.keys() <= found.keys()
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    shared = {pair.encoder.get_input_embeddings().weight, pair.decoder.get_input_embeddings().weight}
    assert shared == {pair.decoder.get_output_embeddings().weight}
    new = [name for name in pair.decoder.bert.state_dict() if name not in wanted]
    assert new
    assert all("crossattention" in name for name in new)


def test_new_weights_are_random_and_the_same_at_each_load_whatever_was_drawn_before(tiny_bert: str) -> None:
    torch.manual_seed(1)
    first = load_backbone(f"warm:{tiny_bert}", head="seq2seq")
    torch.manual_seed(2)
    second = load_backbone(f"warm:{tiny_bert}", head="any")
    assert first.fingerprint == second.fingerprint
    queries = [layer.crossattention.self.query.weight for layer in first.model.decoder.bert.encoder.layer]
    assert not torch.equal(queries[0], queries[1])
    for weight in (*queries, first.model.decoder.cls.predictions.transform.dense.weight):
        assert weight.std() == pytest.approx(0.02, rel=0.1)
        assert weight.abs().max() <= 0.02 * 3**0.5


@pytest.mark.slow
def test_fingerprint_is_the_same_in_another_process(tiny_bert: str) -> None:
    script = (
        "import sys; from peft_rag.backbone import load_backbone;"
        "print(load_backbone(sys.argv[1], head='seq2seq').fingerprint)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, f"warm:{tiny_bert}"], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == load_backbone(f"warm:{tiny_bert}", head="seq2seq").fingerprint


def test_uniform_is_the_stream_of_pcg64_scaled() -> None:
    """The numbers themselves, so that no release of a library changes what is called the same model."""
    found = uniform("layer.weight", (2, 2), 0.5).numpy()
    integers = np.random.PCG64(_seed("layer.weight"))
    words = [word for _ in range(2) for word in _halves(int(integers.random_raw()))]
    plain = [np.float32((2 * np.float32((word >> 8) / 2**24) - 1) * np.float32(0.5)) for word in words]
    assert found.ravel().tolist() == plain
    assert np.abs(uniform("other", (2, 2), 0.5).numpy() - found).max() > 0


def _seed(name: str) -> int:
    import hashlib

    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:16], "big")


def _halves(word: int) -> tuple[int, int]:
    return word & 0xFFFFFFFF, word >> 32


# transformers says so whenever a pair is given labels.
@pytest.mark.filterwarnings("ignore:Version v4.12.0 introduces a better way:FutureWarning")
def test_pair_trains_and_generates(tiny_bert: str) -> None:
    backbone = load_backbone(f"warm:{tiny_bert}", head="seq2seq")
    settings, tokenizer = backbone.model.config, backbone.tokenizer
    assert settings.decoder_start_token_id == tokenizer.cls_token_id
    assert (settings.eos_token_id, settings.pad_token_id) == (tokenizer.sep_token_id, tokenizer.pad_token_id)
    assert backbone.is_encoder_decoder
    model, report = attach(backbone.model, "lora")
    assert any("crossattention" in name for name in report.matched)
    batch = tokenizer(["apple pear", "iron"], padding=True, return_tensors="pt", return_token_type_ids=False)
    labels = tokenizer(["plum", "zinc"], return_tensors="pt").input_ids
    optimiser = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(8):
        loss = model(**batch, labels=labels).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    written = model.generate(**batch, max_new_tokens=3, do_sample=False)
    assert written[:, 0].tolist() == [tokenizer.cls_token_id] * 2


def test_warm_name_without_head_is_the_encoder(tiny_bert: str) -> None:
    assert load_backbone(f"warm:{tiny_bert}").fingerprint == load_backbone(tiny_bert).fingerprint


@pytest.mark.parametrize("family", ["distilbert", "modernbert", "t5"])
def test_encoder_that_cannot_be_a_decoder_is_refused(tmp_path: Path, family: str) -> None:
    TINY_BACKBONES[family]().save_pretrained(tmp_path)
    tokenizer = word_tokenizer()
    tokenizer.cls_token, tokenizer.sep_token = "[CLS]", "[SEP]"
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(BackboneError, match=rf"a {family} cannot start a decoder.* bert, roberta"):
        load_backbone(f"warm:{tmp_path}", head="seq2seq")


def test_tokenizer_without_begin_and_end_is_refused(tmp_path: Path) -> None:
    TINY_BACKBONES["bert"]().save_pretrained(tmp_path)
    word_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(BackboneError, match="its tokenizer has neither cls_token nor bos_token"):
        load_backbone(f"warm:{tmp_path}", head="seq2seq")


def test_warm_start_is_no_decoder(tiny_bert: str) -> None:
    with pytest.raises(BackboneError, match="it generates with the head 'seq2seq', but 'causal' is asked for"):
        load_backbone(f"warm:{tiny_bert}", head="causal")


def test_run_names_its_backbone_with_how_it_is_loaded() -> None:
    base = {"train": "a.jsonl", "output": "out", "backbone": "some/bert"}
    assert from_mapping(base).backbone_name == "some/bert"
    assert from_mapping({**base, "backbone_encoder_decoder": "true"}).backbone_name == "warm:some/bert"
    assert from_mapping({**base, "load_in": "4bit"}).backbone_name == "4bit:some/bert"
    assert from_mapping({**base, "backbone": "8bit:some/bert"}).backbone_name == "8bit:some/bert"
    for wrong, message in (
        ({"load_in": "2bit"}, "load_in is '2bit'. Choose 4bit or 8bit"),
        ({"load_in": "4bit", "backbone_encoder_decoder": True}, "cannot start an encoder-decoder in 4bit"),
        ({"load_in": "4bit", "backbone": "8bit:x"}, "says 8bit, but load_in says 4bit"),
    ):
        with pytest.raises(ConfigError, match=message):
            from_mapping({**base, **wrong})


@pytest.mark.parametrize("name", ["bert", "a/b@c", "warm:a/b", "4bit:a", "8bit:/folder/x", "C:\\models\\x"])
def test_name_is_written_as_it_is_read(name: str) -> None:
    assert str(BackboneName.parse(name)) == name
