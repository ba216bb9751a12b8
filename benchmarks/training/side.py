"""One side of the comparison in a process of its own; run by `measure`, prints one JSON object.

Nothing heavy is imported before a side imports it, so that its start-up is its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

OURS, PROBED, BARE = "peft-rag", "peft-rag, head from a probe", "bare"


@dataclass(frozen=True)
class Work:
    """What every side does alike.

    Attributes:
        data: folder with ``train.jsonl``, ``validation.jsonl`` and ``test.jsonl``.
        max_length: tokens of one input at most.
        steps: optimiser steps.
        batch_size: examples of one step.
        learning_rate: at its height; it rises over the first tenth of the steps and falls to 0, both linearly.
        seed: of initialisation and the order of the data.
    """

    data: str
    max_length: int
    steps: int
    batch_size: int
    learning_rate: float
    seed: int

    def settings(self) -> dict[str, Any]:
        """Return what both sides give to transformers' TrainingArguments."""
        return {
            "learning_rate": self.learning_rate,
            "per_device_train_batch_size": self.batch_size,
            "per_device_eval_batch_size": 64,
            "max_steps": self.steps,
            "lr_scheduler_type": "linear",
            "warmup_steps": 0.1,
            "weight_decay": 0.01,
            "seed": self.seed,
            "eval_strategy": "no",
            "save_strategy": "no",
            "logging_steps": 10,
            "report_to": "none",
            "disable_tqdm": True,
            "dataloader_pin_memory": False,
        }


def measure(side: str, work: Work) -> dict[str, float]:
    """Run a side in a process of its own.

    Returns:
        ``startup`` (seconds from the start of the process to the begin of its first step), ``examples_per_second`` from
        there to the end of the last step, ``peak_memory_bytes`` up to then (of the accelerator's memory where there is
        one, else of the process), and ``accuracy`` on the test split.

    Raises:
        SystemExit: the process failed; its last words are shown.
    """
    with tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, "PEFT_RAG_CACHE": cache, "TOKENIZERS_PARALLELISM": "false"}
        words = [sys.executable, "-m", __name__, side, json.dumps(asdict(work)), str(time.time())]
        done = subprocess.run(words, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise SystemExit(f"{side} failed: {done.stderr.strip()[-2000:]}")
    measured: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return measured


class Clock:
    """Looks at the time when the first step begins and the last one ends; joined to every Trainer of the process."""

    def __init__(self) -> None:
        self.begun = self.ended = 0.0
        self.memory = 0

    def start(self) -> None:
        """Give the clock to the Trainers that are made from now on."""
        from transformers import TrainerCallback, trainer

        clock = self

        class Look(TrainerCallback):
            def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                clock.begun = clock.begun or time.time()

            def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                if state.global_step == state.max_steps:
                    clock.memory = _peak_memory()
                    clock.ended = time.time()

        trainer.DEFAULT_CALLBACKS.append(Look)


def _peak_memory() -> int:
    """Return the peak in bytes, once an accelerator has done all that it was told to."""
    import resource

    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _ours(work: Work, clock: Clock, head_init: str) -> float:
    """Train by this library's job, and return the accuracy on the test split."""
    from peft_rag.job import prepare, tune

    with tempfile.TemporaryDirectory() as folder:
        config = _config(work, head_init, folder)
        prepared = prepare(config, Path(folder), _silent)
        clock.start()
        tune(prepared, config, _silent)
        answers = prepared.model.outputs(prepared.test).log_probs
    task = prepared.splits.task
    return task.evaluate(answers, task.targets(prepared.test.examples), resamples=0)["accuracy"].value


def _config(work: Work, head_init: str, folder: str) -> Any:
    from peft_rag.config import RunConfig

    splits = {name: f"{work.data}/{name}.jsonl" for name in ("train", "validation", "test")}
    return RunConfig(
        **splits,
        max_length=work.max_length,
        fusion="none",
        head_init=head_init,
        seed=work.seed,
        output=f"{folder}/out",
        training=work.settings(),
    )


def _bare(work: Work, clock: Clock) -> float:
    """Train by transformers' Trainer and peft alone, and return the accuracy on the test split."""
    from transformers import TrainingArguments, set_seed

    from benchmarks.peers.bare_loop import BareLoop
    from peft_rag.config import DEFAULT_MODEL
    from peft_rag.packaged import model_location

    set_seed(work.seed)
    splits = {name: _read(Path(work.data) / f"{name}.jsonl") for name in ("train", "test")}
    labels = sorted({record["label"] for record in splits["train"]})
    loop = BareLoop(model_location(DEFAULT_MODEL), len(labels), work.max_length)
    rows = {
        name: loop.rows([one["text"] for one in records], [labels.index(one["label"]) for one in records])
        for name, records in splits.items()
    }
    clock.start()
    with tempfile.TemporaryDirectory() as folder:
        trainer = loop.trainer(
            TrainingArguments(output_dir=folder, use_cpu=_on_cpu(), **work.settings()), rows["train"]
        )
        trainer.train()
        answers = trainer.predict(rows["test"])
    return float((answers.predictions.argmax(-1) == answers.label_ids).mean())


def _on_cpu() -> bool:
    import torch

    return not (torch.cuda.is_available() or torch.backends.mps.is_available())


def _read(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _silent(line: str) -> None:
    """Say nothing: the output is the result."""


SIDES: dict[str, Callable[[Work, Clock], float]] = {
    OURS: lambda work, clock: _ours(work, clock, "random"),
    PROBED: lambda work, clock: _ours(work, clock, "probe"),
    BARE: _bare,
}


def _main(side: str, described: str, started: float) -> None:
    work, clock = Work(**json.loads(described)), Clock()
    accuracy = SIDES[side](work, clock)
    measured = {
        "startup": clock.begun - started,
        "examples_per_second": work.steps * work.batch_size / (clock.ended - clock.begun),
        "peak_memory_bytes": clock.memory,
        "accuracy": accuracy,
    }
    print(json.dumps(measured))


if __name__ == "__main__":
    _main(sys.argv[1], sys.argv[2], float(sys.argv[3]))
