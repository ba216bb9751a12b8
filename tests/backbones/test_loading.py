"""Backbones of every common family, loaded without a head and with the one they generate by."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from peft_rag.backbone import Backbone, as_backbone, load_backbone
from peft_rag.errors import BackboneError, ConfigError
from peft_rag.testing import TINY_BACKBONES
from peft_rag.testing.fusions import word_tokenizer

ENCODERS = ("bert", "roberta", "distilbert", "modernbert", "deberta")
DECODERS = ("gpt2", "llama", "qwen", "gemma", "gemma3")
PAIRS = ("t5", "bart", "encoder_decoder")

Stored = Callable[[str], str]


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Stored:
    """Give the folder of a tiny backbone, by family."""
    parent = tmp_path_factory.mktemp("backbones")

    def folder(family: str) -> str:
        place = parent / family
        if not place.exists():
            TINY_BACKBONES[family]().save_pretrained(place)
            word_tokenizer().save_pretrained(place)
        return str(place)

    return folder


def generated(backbone: Backbone, *texts: str) -> list[list[int]]:
    """Continue texts greedily, four tokens at least and at most."""
    backbone.tokenizer.padding_side = "right" if backbone.is_encoder_decoder else "left"
    batch = backbone.tokenizer(list(texts), padding=True, return_tensors="pt")
    with torch.no_grad():
        answer = backbone.model.generate(**batch, do_sample=False, min_new_tokens=4, max_new_tokens=4)
    written: list[list[int]] = answer[:, -4:].tolist()
    return written


def test_every_tiny_backbone_is_tried_here() -> None:
    assert {*ENCODERS, *DECODERS, *PAIRS} == set(TINY_BACKBONES)


@pytest.mark.parametrize("family", TINY_BACKBONES)
def test_backbone_without_head_reads_and_is_frozen(stored: Stored, family: str) -> None:
    backbone = load_backbone(stored(family))
    batch = backbone.tokenizer("w1 w2 w3", return_tensors="pt")
    states = backbone.model(**batch).last_hidden_state
    assert states.shape == (*batch.input_ids.shape, backbone.hidden_size)
    assert backbone.hidden_size == 32
    assert not any(parameter.requires_grad for parameter in backbone.model.parameters())
    assert not backbone.model.training
    assert not backbone.generates
    assert not backbone.is_encoder_decoder
    assert backbone.is_causal == (family in DECODERS)
    assert backbone.longest_input == 32


@pytest.mark.parametrize(("family", "head"), [*((f, "causal") for f in DECODERS), *((f, "seq2seq") for f in PAIRS)])
def test_backbone_with_its_head_generates_the_same_alone_and_in_a_batch(stored: Stored, family: str, head: str) -> None:
    backbone = load_backbone(stored(family), head=head)
    assert backbone.generates
    assert backbone.is_encoder_decoder == (family in PAIRS)
    assert backbone.hidden_size == 32
    assert not any(parameter.requires_grad for parameter in backbone.model.parameters())
    texts = ("w1 w2 w3 w4 w5", "w6")
    assert generated(backbone, *texts) == [generated(backbone, text)[0] for text in texts]
    assert load_backbone(stored(family), head="any").fingerprint == backbone.fingerprint


@pytest.mark.parametrize(("family", "head"), [("gpt2", "causal"), ("t5", "seq2seq"), ("bart", "seq2seq")])
def test_loaded_head_is_the_stored_one(stored: Stored, family: str, head: str) -> None:
    backbone, original = load_backbone(stored(family), head=head), TINY_BACKBONES[family]()
    ids = torch.tensor([[4, 5, 6, 7]])
    inputs = {"input_ids": ids} if head == "causal" else {"input_ids": ids, "decoder_input_ids": ids[:, :2]}
    with torch.no_grad():
        assert torch.equal(backbone.model(**inputs).logits, original(**inputs).logits)


@pytest.mark.parametrize("head", ["causal", "seq2seq", "any"])
@pytest.mark.parametrize("family", ENCODERS)
def test_encoder_asked_to_generate_says_which_kinds_can(stored: Stored, family: str, head: str) -> None:
    with pytest.raises(BackboneError, match=r"reads text and cannot write it. Decoders can \(gpt2, .*warm:NAME"):
        load_backbone(stored(family), head=head)


@pytest.mark.parametrize(("family", "head", "has"), [("llama", "seq2seq", "causal"), ("bart", "causal", "seq2seq")])
def test_other_head_than_the_backbones_is_refused(stored: Stored, family: str, head: str, has: str) -> None:
    with pytest.raises(BackboneError, match=f"it generates with the head '{has}', but '{head}' is asked for. Name a"):
        load_backbone(stored(family), head=head)


def test_unknown_head_is_refused(stored: Stored) -> None:
    with pytest.raises(ConfigError, match=r"head is 'lm'. Choose none, causal, seq2seq, any."):
        load_backbone(stored("gpt2"), head="lm")


@pytest.mark.parametrize("family", ["gpt2", "gemma3"])
def test_decoder_with_tied_embeddings_has_one_fingerprint_with_and_without_head(stored: Stored, family: str) -> None:
    headed, bare = load_backbone(stored(family), head="causal"), load_backbone(stored(family))
    assert headed.model.get_output_embeddings().weight is headed.model.get_input_embeddings().weight
    assert headed.fingerprint == bare.fingerprint


def test_head_of_its_own_is_in_the_fingerprint(stored: Stored) -> None:
    headed, bare = load_backbone(stored("llama"), head="causal"), load_backbone(stored("llama"))
    assert headed.fingerprint != bare.fingerprint
    again = load_backbone(stored("llama"), head="causal")
    assert again.fingerprint == headed.fingerprint
    with torch.no_grad():
        again.model.lm_head.weight[0, 0] += 1
    assert as_backbone(again.model, again.tokenizer, "changed").fingerprint != headed.fingerprint


def test_missing_padding_is_taken_from_the_end_token(tmp_path: Path) -> None:
    sizes = {"vocab_size": 40, "n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 64}
    GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=1, eos_token_id=2)).save_pretrained(tmp_path)
    tokenizer = word_tokenizer()
    tokenizer.pad_token, tokenizer.eos_token = None, "[SEP]"
    tokenizer.save_pretrained(tmp_path)
    backbone = load_backbone(str(tmp_path), head="causal")
    assert (backbone.tokenizer.pad_token, backbone.model.config.pad_token_id) == ("[SEP]", 2)
    assert backbone.model.generation_config.pad_token_id == backbone.model.generation_config.eos_token_id == 2
    tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(BackboneError, match="neither a pad_token nor an eos_token"):
        load_backbone(str(tmp_path))


def test_model_in_memory_keeps_the_padding_it_has() -> None:
    model = TINY_BACKBONES["gpt2"]()
    assert as_backbone(model, word_tokenizer(), "tiny").model.config.pad_token_id == 0
