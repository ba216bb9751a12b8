"""Real texts as files that every side reads."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from peft_rag.config import DEFAULT_MODEL
from peft_rag.packaged import model_location
from peft_rag.records import Record, read_records

DEMO = "wiki-topics"
_VALIDATION = 16


@dataclass(frozen=True)
class Data:
    """Examples to train on and to test on.

    Attributes:
        name: of the data set.
        train: drawn at random.
        test: drawn at random.
    """

    name: str
    train: Sequence[Record]
    test: Sequence[Record]

    def write(self, folder: Path) -> Path:
        """Write the files of a run; validation, which no step reads, is a few of the training examples."""
        folder.mkdir(parents=True)
        for split, records in (("train", self.train), ("validation", self.train[:_VALIDATION]), ("test", self.test)):
            rows = [{"text": record.fields["text"], "label": record.fields["label"]} for record in records]
            (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return folder


def available() -> list[str]:
    """Return the demo data set and those of banking77 and sst2 that lie in ``$PEFT_RAG_DATA``."""
    folder = os.environ.get("PEFT_RAG_DATA", "")
    others = [name for name in ("sst2", "banking77") if folder and (Path(folder) / name / "train.jsonl").is_file()]
    return [DEMO, *others]


def load(name: str, train: int, test: int, *, at_least: int = 0) -> Data:
    """Draw examples of a data set.

    Args:
        name: one of `available`.
        train: examples to train on.
        test: examples of the test split.
        at_least: tokens of a text, so that all of them can be cut to one length.

    Raises:
        SystemExit: the data set has fewer.
    """
    source = f"demo:{name}/" if name == DEMO else f"{os.environ['PEFT_RAG_DATA']}/{name}/"
    suffix = "" if name == DEMO else ".jsonl"
    drawn = []
    for split, count in (("train", train), ("test", test)):
        records = _long_enough(read_records(f"{source}{split}{suffix}"), at_least)
        if len(records) < count:
            raise SystemExit(f"{name} has {len(records):,} {split} texts of {at_least} tokens, fewer than {count:,}")
        drawn.append(random.Random(1).sample(records, count))
    return Data(name, *drawn)


def _long_enough(records: list[Record], tokens: int) -> list[Record]:
    if not tokens:
        return records
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_location(DEFAULT_MODEL))
    lengths = map(len, tokenizer([str(record.fields["text"]) for record in records])["input_ids"])
    return [record for record, length in zip(records, lengths, strict=True) if length >= tokens]
