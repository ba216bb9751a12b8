"""Prompts beyond the window, condensed to what their end asks about."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from peft_rag.artefact import load
from peft_rag.config import from_mapping
from peft_rag.corpus import Document
from peft_rag.errors import ConfigError, DataError, FingerprintError
from peft_rag.job import run
from peft_rag.long_prompts import PromptChunks, restore_long_inputs
from peft_rag.retrieval.chunks import chunk_by_sentences, sentence_spans
from peft_rag.tasks.base import Example
from peft_rag.testing import TINY_BACKBONES, WordEncoder
from peft_rag.testing.fusions import word_tokenizer
from tests.conftest import write_jsonl

WINDOW = 24


def reader(window: int = WINDOW) -> PromptChunks:
    return PromptChunks(WordEncoder(), word_tokenizer(), window)


def prompt(about: int, place: int, sentences: int = 12) -> str:
    """Return sentences of which one is about what is asked at the end."""
    draw = random.Random(about)
    words = [f"w{10 + draw.randrange(20)}" for _ in range(3 * sentences)]
    parts = [" ".join(words[3 * number : 3 * number + 3]) + " ." for number in range(sentences)]
    parts[place] = f"w{about} w5 w{about} ."
    return " ".join(parts) + f"\nask w{about} w5 ? say "


def tokens(text: str) -> int:
    return len(word_tokenizer()(text, add_special_tokens=False)["input_ids"])


@pytest.mark.parametrize("place", [0, 5, 10])
@pytest.mark.parametrize("about", [1, 2, 3])
def test_the_end_stays_whole_and_what_it_asks_about_is_kept(about: int, place: int) -> None:
    text = prompt(about, place)
    (short,) = reader().read([Example("a", text)])
    assert tokens(text) > WINDOW >= tokens(short.text)
    assert short.text.endswith(f"ask w{about} w5 ? say ")
    assert f"w{about} w5 w{about}" in short.text


def test_chunks_are_those_of_the_largest_cosine_by_a_plain_loop() -> None:
    made, text = reader(), prompt(2, 4)
    end = next(begin for begin, _ in sentence_spans(text) if tokens(text[begin:]) <= WINDOW // 3)
    chunks = chunk_by_sentences(Document("text", text[:end]), made.tokenizer, WINDOW // 6, 0)
    asked = made.encoder.encode([text[text.index("ask") :]])[0]
    cosines = []
    for chunk in chunks:
        vector = made.encoder.encode([chunk.text])[0]
        cosines.append(float(sum(a * b for a, b in zip(vector, asked, strict=True))))
    kept: list[int] = []
    best = text[end:]
    for place in np.argsort([-cosine for cosine in cosines], kind="stable").tolist():
        order = sorted([*kept, place])
        parts, last = "", -1
        for one in order:
            parts += "" if not parts and one == 0 else " " if one == last + 1 and parts else " … " if parts else "… "
            parts += chunks[one].text
            last = one
        longer = parts + (" " if last == len(chunks) - 1 else " … ") + text[end:]
        if tokens(longer) > WINDOW:
            break
        kept, best = order, longer
    (short,) = made.read([Example("a", text)])
    assert short.text.split() == best.split()


def test_prompts_that_fit_and_empty_ones_are_left_as_they_are() -> None:
    texts = ["", "w1 w2. w3?", " w4 "]
    assert [one.text for one in reader().read([Example(text, text) for text in texts])] == texts


def test_a_prompt_without_sentences_keeps_its_last_tokens() -> None:
    (short,) = reader().read([Example("a", " ".join(f"w{number % 30}" for number in range(100)))])
    assert short.text.split()[-8:] == [f"w{number % 30}" for number in range(92, 100)]
    assert tokens(short.text) <= WINDOW


def test_mistakes_are_said() -> None:
    with pytest.raises(ConfigError, match="a prompt of 11 tokens has no room"):
        reader(11)
    made = reader()
    again = restore_long_inputs(json.loads(json.dumps(made.to_dict())), {}, made.encoder, made.tokenizer)
    assert isinstance(again, PromptChunks)
    assert again.read([Example("a", prompt(1, 3))]) == made.read([Example("a", prompt(1, 3))])
    with pytest.raises(FingerprintError, match="reads long inputs by encoder"):
        restore_long_inputs({**made.to_dict(), "fingerprint": "sha256:other"}, {}, made.encoder, made.tokenizer)


@pytest.mark.filterwarnings("ignore:No sentence-transformers model found")
@pytest.mark.parametrize(("family", "task"), [("gpt2", "text-generation"), ("gpt2", "multiple-choice")])
@pytest.mark.parametrize("fusion", ["none", "concat"])
def test_a_run_reads_long_prompts_and_so_does_its_artefact(
    tiny_bert: str, tmp_path: Path, family: str, task: str, fusion: str
) -> None:
    folder = tmp_path / family
    tokenizer = word_tokenizer()
    tokenizer.eos_token = "[SEP]"
    TINY_BACKBONES[family]().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if task == "text-generation":
        rows: list[dict[str, Any]] = [{"prompt": prompt(n % 4, n), "response": f"w{n % 4}"} for n in range(8)]
        options: dict[str, Any] = {"task.target_length": 4}
    else:
        choices = [f"w{n}" for n in range(4)]
        rows = [{"question": prompt(n % 4, n), "choices": choices, "label": n % 4} for n in range(8)]
        options = {"task.by": "likelihood", "task.choice_tokens": 2}
    data = write_jsonl(tmp_path / "data.jsonl", rows)
    corpus = write_jsonl(tmp_path / "corpus.jsonl", [{"text": f"w{n}"} for n in range(3)])
    settings = {"train": data, "validation": data, "corpus": corpus, "task": task, "fusion": fusion, **options}
    settings |= {"backbone": str(folder), "encoder": tiny_bert, "max_length": 32, "max_steps": 1, "disable_tqdm": True}
    if fusion == "concat":
        settings |= {"fusion.k": 1, "fusion.passage_tokens": 4, "fallback": False}
    with pytest.raises(DataError, match="the prompt has"):
        run(from_mapping({**settings, "output": str(tmp_path / "cut")}), say=lambda line: None)
    settings |= {"long_inputs": "within_document", "output": str(tmp_path / "out")}
    run(from_mapping(settings), say=lambda line: None)
    model = load(str(tmp_path / "out"))
    split = model.split(model.task.read(_records(rows), labelled=False))
    encoded = model.encode(split)
    for row, fields in zip(encoded, rows, strict=True):
        asked = str(fields.get("prompt", fields.get("question"))).split("\n")[-1]
        end = model.tokenizer(asked, add_special_tokens=False)["input_ids"]
        kept = len(end) if fusion == "none" else 1  # half of so small a window holds no more of it
        assert row["input_ids"][-1 - kept : -1] == end[-kept:]
        assert len(row["input_ids"]) <= 32
        assert bool(row.get("read")) == (fusion == "concat")
    assert len(model.predict(split.examples)) == 8


def _records(rows: list[dict[str, Any]]) -> Any:
    from peft_rag.records import read_records

    return read_records(rows)
