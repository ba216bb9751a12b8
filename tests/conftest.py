"""What the tests share: a tiny random backbone with a tokenizer, and data a tiny model can learn."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

WORDS = {
    "fruit": ["apple", "pear", "plum", "cherry", "grape", "peach"],
    "metal": ["iron", "copper", "zinc", "silver", "nickel", "tin"],
    "river": ["rhine", "danube", "nile", "amazon", "volga", "seine"],
}
FILLER = ["the", "a", "of", "and", "in", "is", "was", "very", "old", "new", "small", "large"]


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep every test's cache to itself, and the hub out of reach."""
    monkeypatch.setenv("PEFT_RAG_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with a two-layer BERT of 32 dimensions, random but fixed, and a word tokenizer."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        ":",
        *FILLER,
        *WORDS,
        *(word for kind in WORDS.values() for word in kind),
    ]
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    folder = tmp_path_factory.mktemp("tiny-bert")
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=64,
    ).save_pretrained(folder)
    torch.manual_seed(0)
    BertModel(
        BertConfig(
            vocab_size=len(vocabulary),
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=64,
            max_position_embeddings=64,
        )
    ).save_pretrained(folder)
    return str(folder)


def toy_records(count: int, seed: int) -> list[dict[str, str]]:
    """Return sentences whose label is the kind of thing that most of their words name."""
    draw = random.Random(seed)
    records = []
    for number in range(count):
        label = sorted(WORDS)[number % len(WORDS)]
        words = draw.choices(WORDS[label], k=3) + draw.choices(FILLER, k=5)
        words += draw.choices(WORDS[draw.choice(sorted(WORDS))], k=1)
        draw.shuffle(words)
        records.append({"id": f"{seed}-{number}", "text": " ".join(words), "label": label})
    return records


def write_jsonl(path: Path, records: Sequence[Mapping[str, object]]) -> str:
    """Write records and return the path as text."""
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return str(path)


@pytest.fixture
def toy_data(tmp_path: Path) -> dict[str, str]:
    """Three files a tiny model learns within a second."""
    return {
        "train": write_jsonl(tmp_path / "train.jsonl", toy_records(60, 1)),
        "validation": write_jsonl(tmp_path / "validation.jsonl", toy_records(30, 2)),
        "test": write_jsonl(tmp_path / "test.jsonl", toy_records(30, 3)),
    }


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A Chromium; tests that use it are marked with `tests.browser.needs_browser`."""
    from playwright.sync_api import sync_playwright

    from tests.browser import CHROMIUM, FLAGS

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield started
        started.close()
