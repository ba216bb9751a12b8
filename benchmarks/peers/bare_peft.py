"""A plain transformers Trainer around a peft LoRA sequence classifier, all options as peft's examples have them."""

from __future__ import annotations

import tempfile
import time
from typing import Any

import torch
from cell import Answer, main
from peft import LoraConfig, TaskType, get_peft_model
from torch.utils.data import Dataset
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
    set_seed,
)

from peft_rag.benchmark.costs import peak_memory
from peft_rag.config import RunConfig
from peft_rag.data import Splits
from peft_rag.packaged import model_location

_LEARNING_RATE = 1e-3


class Rows(Dataset[dict[str, Any]]):
    """Tokenised texts with their classes."""

    def __init__(self, encoded: Any, targets: list[int]) -> None:
        self.encoded, self.targets = encoded, targets

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, place: int) -> dict[str, Any]:
        return {name: values[place] for name, values in self.encoded.items()} | {"labels": self.targets[place]}


def lora(config: RunConfig, splits: Splits) -> Answer:
    """Train for the suite's steps and answer the test split."""
    set_seed(config.seed)
    place = model_location(config.backbone)
    tokenizer = AutoTokenizer.from_pretrained(place)
    plain = AutoModelForSequenceClassification.from_pretrained(place, num_labels=len(splits.task.labels))
    model = get_peft_model(plain, LoraConfig(task_type=TaskType.SEQ_CLS, r=8, lora_alpha=16))

    def rows(examples: Any) -> Rows:
        encoded = tokenizer([one.text for one in examples], truncation=True, max_length=config.max_length)
        return Rows(encoded, splits.task.targets(examples).tolist())

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            learning_rate=_LEARNING_RATE,
            per_device_train_batch_size=32,
            per_device_eval_batch_size=64,
            max_steps=config.training["max_steps"],
            seed=config.seed,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=not torch.cuda.is_available(),
        )
        trainer = Trainer(
            model, arguments, train_dataset=rows(splits.train), data_collator=DataCollatorWithPadding(tokenizer)
        )
        begun = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - begun
        logits = torch.tensor(trainer.predict(rows(splits.test)).predictions)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    costs = {
        **peak_memory(),
        "trainable_parameters": trained,
        "train_seconds": seconds,
        "steps": arguments.max_steps,
        "examples_per_second": 32 * arguments.max_steps / seconds,
    }
    return Answer(logits.double().softmax(-1).numpy(), costs)


if __name__ == "__main__":
    main("bare-peft", "bare_peft.py", ["peft", "transformers", "torch"], lora)
