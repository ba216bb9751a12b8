"""A plain transformers Trainer around a peft LoRA sequence classifier, all options as peft's examples have them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from peft import LoraConfig, TaskType, get_peft_model
from torch.utils.data import Dataset
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
)


class Rows(Dataset[dict[str, Any]]):
    """Tokenised texts with their classes."""

    def __init__(self, encoded: Any, targets: Sequence[int]) -> None:
        self.encoded, self.targets = encoded, targets

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, place: int) -> dict[str, Any]:
        return {name: values[place] for name, values in self.encoded.items()} | {"labels": self.targets[place]}


class BareLoop:
    """A sequence classifier under LoRA (r 8, alpha 16, query and value), and the Trainer that tunes it.

    Batches are drawn at random and padded to their longest.
    """

    def __init__(self, place: str, classes: int, max_length: int) -> None:
        """Load the model from a folder or by hub name, with a fresh head of so many classes."""
        self.tokenizer = AutoTokenizer.from_pretrained(place)
        plain = AutoModelForSequenceClassification.from_pretrained(place, num_labels=classes)
        self.model = get_peft_model(plain, LoraConfig(task_type=TaskType.SEQ_CLS, r=8, lora_alpha=16))
        self.max_length = max_length

    def rows(self, texts: Sequence[str], targets: Sequence[int]) -> Rows:
        """Tokenise texts, cut to ``max_length`` tokens."""
        return Rows(self.tokenizer(list(texts), truncation=True, max_length=self.max_length), targets)

    def trainer(self, arguments: TrainingArguments, train: Rows) -> Trainer:
        """Return a Trainer over tokenised texts."""
        collator = DataCollatorWithPadding(self.tokenizer)
        return Trainer(self.model, arguments, train_dataset=train, data_collator=collator)
