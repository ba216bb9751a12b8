"""A bare loop of transformers' Trainer and peft's LoRA as an external row of a suite."""

from __future__ import annotations

import tempfile
import time

import torch
from bare_loop import BareLoop, Rows
from cell import Answer, main
from transformers import TrainingArguments, set_seed

from peft_rag.benchmark.costs import peak_memory
from peft_rag.config import RunConfig
from peft_rag.data import Splits
from peft_rag.packaged import model_location
from peft_rag.tasks.base import Example

_LEARNING_RATE = 1e-3


def lora(config: RunConfig, splits: Splits) -> Answer:
    """Train for the suite's steps and answer the test split."""
    set_seed(config.seed)
    loop = BareLoop(model_location(config.backbone), len(splits.task.labels), config.max_length)

    def rows(examples: list[Example]) -> Rows:
        return loop.rows([one.text for one in examples], splits.task.targets(examples).tolist())

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
        trainer = loop.trainer(arguments, rows(splits.train))
        begun = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - begun
        logits = torch.tensor(trainer.predict(rows(splits.test)).predictions)
    trained = sum(parameter.numel() for parameter in loop.model.parameters() if parameter.requires_grad)
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
