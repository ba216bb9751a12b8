"""Texts whose class shows only far beyond the window: cut they are unreadable, read within themselves they are not."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer

from peft_rag.artefact import load
from peft_rag.config import from_mapping
from peft_rag.errors import ConfigError, DataError, FingerprintError
from peft_rag.job import run
from peft_rag.long_inputs import RelevantChunks
from peft_rag.retrieval.encoder import SentenceEncoder
from peft_rag.tasks.base import Example
from tests.conftest import FILLER, WORDS, write_jsonl

pytestmark = pytest.mark.filterwarnings("ignore:No sentence-transformers model found")

WINDOW = 22


def long_records(count: int, seed: int) -> list[dict[str, str]]:
    """Return texts of 16 sentences, one of which, never among the first five, names things of the label's kind."""
    draw = random.Random(seed)
    records = []
    for number in range(count):
        label = sorted(WORDS)[number % 3]
        sentences = [" ".join(draw.choices(FILLER, k=5)) + "." for _ in range(16)]
        sentences[draw.randrange(5, 16)] = " ".join(draw.choices(WORDS[label], k=5)) + "."
        records.append({"id": f"{seed}-{number}", "text": " ".join(sentences), "label": label})
    return records


def examples(count: int, seed: int) -> list[Example]:
    return [Example(one["id"], one["text"], (one["label"],)) for one in long_records(count, seed)]


@pytest.fixture
def reader(tiny_bert: str) -> RelevantChunks:
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    return RelevantChunks.fit(examples(60, 1), SentenceEncoder(tiny_bert), tokenizer, WINDOW)


def names_its_class(example: Example) -> bool:
    return any(word in example.text for word in WORDS[(example.labels or ("",))[0]])


def test_unseen_texts_keep_the_sentence_that_tells_their_class_and_fit(reader: RelevantChunks) -> None:
    unseen = examples(60, 2)
    read = reader.read(unseen)
    assert [example.id for example in read] == [example.id for example in unseen]
    assert sum(map(names_its_class, read)) >= 57
    lengths = [len(reader.tokenizer(one.text, add_special_tokens=False)["input_ids"]) for one in read]
    assert max(lengths) <= WINDOW
    assert reader.read([Example("s", "apple pear. iron.")])[0].text == "apple pear. iron."
    assert reader.read([]) == []


def test_labels_of_a_text_do_not_decide_what_is_read_of_it(reader: RelevantChunks) -> None:
    given = examples(6, 3)
    blind = [Example(one.id, one.text) for one in given]
    assert [one.text for one in reader.read(given)] == [one.text for one in reader.read(blind)]


def test_scores_equal_plain_loops(reader: RelevantChunks) -> None:
    chunks = ["apple pear plum.", "the old and the new.", "iron nile apple."]
    vectors = reader.encoder.encode(chunks)
    for row, given in enumerate(reader.scores(chunks)):
        logits = [
            sum(float(a) * float(w) for a, w in zip(vectors[row], weight, strict=True)) + float(bias)
            for weight, bias in zip(reader.weight, reader.bias, strict=True)
        ]
        total = sum(math.exp(logit) for logit in logits)
        shares = [math.exp(logit) / total for logit in logits]
        priors = [math.exp(float(value)) for value in reader.log_prior]
        told = sum(share * math.log(share / prior) for share, prior in zip(shares, priors, strict=True))
        assert given == pytest.approx(told, abs=1e-4)
    assert sum(math.exp(float(value)) for value in reader.log_prior) == pytest.approx(1, abs=1e-6)


def test_two_classes_give_what_one_logistic_curve_gives(tiny_bert: str) -> None:
    from sklearn.linear_model import LogisticRegression

    encoder = SentenceEncoder(tiny_bert)
    texts = [f"{word} {other}" for kind in ("fruit", "metal") for word in WORDS[kind] for other in WORDS[kind][:3]]
    given = [Example(str(n), text, ("fruit" if n < 18 else "metal",)) for n, text in enumerate(texts)]
    reader = RelevantChunks.fit(given, encoder, AutoTokenizer.from_pretrained(tiny_bert), WINDOW)
    vectors = encoder.encode(texts)
    mean = vectors.mean(axis=0)
    spread = float(np.sqrt(((vectors - mean) ** 2).sum(axis=1).mean()))
    curve = LogisticRegression(max_iter=300).fit((vectors - mean) / spread, [one.labels[0] for one in given])
    shares = curve.predict_proba((vectors - mean) / spread)
    told = (shares * np.log(shares / 0.5)).sum(axis=1)
    assert reader.scores(texts) == pytest.approx(told, abs=1e-3)


def finish(tiny_bert: str, folder: Path, **changes: Any) -> dict[str, Any]:
    data = {
        name: write_jsonl(folder / f"{name}.jsonl", long_records(count, seed))
        for seed, (name, count) in enumerate({"train": 90, "validation": 30, "test": 60}.items())
    }
    settings = {
        **data,
        "backbone": tiny_bert,
        "encoder": tiny_bert,
        "max_length": WINDOW + 2,
        "num_train_epochs": 4,
        "learning_rate": 0.01,
        "disable_tqdm": True,
        "output": str(folder / "out"),
    }
    return dict(run(from_mapping(settings | changes), say=lambda line: None).metrics)


def test_class_beyond_the_window_is_missed_by_a_cut_and_read_within_the_document(
    tiny_bert: str, tmp_path: Path
) -> None:
    (tmp_path / "cut").mkdir()
    assert finish(tiny_bert, tmp_path / "cut")["after"]["accuracy"] < 0.6
    metrics = finish(tiny_bert, tmp_path, long_inputs="within_document")
    assert metrics["after"]["accuracy"] > 0.9

    stored = json.loads((tmp_path / "out/peft_rag.json").read_text())["long_inputs"]
    assert (stored["encoder"], stored["window"]) == (tiny_bert, WINDOW)
    model = load(str(tmp_path / "out"))
    unseen = long_records(30, 9)
    answers = model.predict([one["text"] for one in unseen])
    assert sum(answer.labels == (one["label"],) for answer, one in zip(answers, unseen, strict=True)) >= 27
    again = model.save_pretrained(tmp_path / "again")
    assert load(str(again)).predict([unseen[0]["text"]]) == answers[:1]


def test_neighbours_read_beside_a_long_text_have_half_of_the_window(tiny_bert: str, tmp_path: Path) -> None:
    options = {"fusion": "concat", "fallback": False, "fusion.k": 1, "fusion.passage_tokens": 8, "max_length": 40}
    assert finish(tiny_bert, tmp_path, long_inputs="within_document", **options)["after"]["accuracy"] > 0.9
    model = load(str(tmp_path / "out"))
    split = model.split(examples(9, 5))
    assert all(row["read"] for row in model.encode(split))


def test_several_labels_share_their_chunks(tiny_bert: str) -> None:
    both = [Example(one.id, f"{one.text} {two.text}", (*one.labels, *two.labels)) for one, two in _pairs()]
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    reader = RelevantChunks.fit(both, SentenceEncoder(tiny_bert), tokenizer, WINDOW)
    assert (reader.weight.shape, reader.bias.shape) == ((3, 32), (3,))
    assert sum(map(names_its_class, reader.read(both))) > 54


def _pairs() -> Any:
    return zip(examples(60, 1), examples(61, 2)[1:], strict=True)


def test_mistakes_are_said(tiny_bert: str, reader: RelevantChunks, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"long_inputs is 'read'\. Choose cut or within_document\."):
        from_mapping({"train": "a", "output": "b", "long_inputs": "read"})
    encoder, tokenizer = reader.encoder, reader.tokenizer
    with pytest.raises(ConfigError, match=r"an input of 2 tokens has no room"):
        RelevantChunks.fit(examples(3, 1), encoder, tokenizer, 2)
    with pytest.raises(DataError, match=r"but the training data has 0 of them. Leave it at cut"):
        RelevantChunks.fit([Example("a", "apple")], encoder, tokenizer, WINDOW)
    about = {**reader.to_dict(), "fingerprint": "sha256:another"}
    with pytest.raises(FingerprintError, match=r"reads long inputs by encoder .* Install the model it names"):
        RelevantChunks.restore(about, reader.arrays(), encoder, tokenizer)
