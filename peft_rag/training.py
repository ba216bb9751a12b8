"""Training through transformers' Trainer: which of its arguments hold, what progress shows, and what it cost."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm
from transformers import EarlyStoppingCallback, PrinterCallback, ProgressCallback, TrainingArguments
from transformers.integrations import get_reporting_integration_callbacks

from peft_rag.counts import check_count
from peft_rag.devices import on_processor
from peft_rag.errors import ConfigError, TrainingError
from peft_rag.examples_trainer import ExamplesTrainer
from peft_rag.fusion.base import Split
from peft_rag.objectives.base import Objective
from peft_rag.query_tower.monitor import RetrievalSpread
from peft_rag.registry import suggest
from peft_rag.rows import RetrievalDropout, Rows

if TYPE_CHECKING:
    from peft_rag.model import RetrievalAugmentedModel

_OURS = {"output_dir", "remove_unused_columns", "label_names", "push_to_hub", "resume_from_checkpoint"}
_DEFAULTS: dict[str, Any] = {
    "num_train_epochs": 3,
    "per_device_train_batch_size": 32,
    "per_device_eval_batch_size": 64,
    "gradient_accumulation_steps": 1,
    "lr_scheduler_type": "linear",
    "warmup_steps": 0.1,
    "weight_decay": 0.01,
    "train_sampling_strategy": "group_by_length",
    "eval_strategy": "epoch",
    "save_strategy": "epoch",
    "save_total_limit": 2,
    "load_best_model_at_end": True,
    "logging_steps": 10,
    "disable_tqdm": False,  # else transformers decides by how much it may say, and the command line lets it say little
    "report_to": "none",
    "dataloader_pin_memory": False,
    "ddp_find_unused_parameters": False,
}
_COUNTS = {
    "per_device_train_batch_size": 1,
    "per_device_eval_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "dataloader_num_workers": 0,
    "max_steps": -1,
}
_SIZES = {"learning_rate", "num_train_epochs", "weight_decay", "max_grad_norm"}
_LESS_IS_BETTER = {"loss", "ece", "perplexity"}
_NOT_OURS = {
    "label_smoothing_factor": "what is minimised is the task's own loss",
    "neftune_noise_alpha": "the backbone's embeddings are read as they are",
}
"""Arguments of transformers' that its Trainer needs another kind of model for, and why this one is none."""


@dataclass(frozen=True)
class TrainingReport:
    """What training cost.

    Attributes:
        seconds: wall-clock time of the steps, evaluation on validation included; of a run that was interrupted, with
            what it took up to the checkpoint from which it went on.
        examples_per_second: training examples over that time.
        steps: optimiser steps taken.
        best_step: step whose weights were kept; 0 where the last were.
    """

    seconds: float
    examples_per_second: float
    steps: int
    best_step: int


def training_arguments(
    output_dir: Path,
    learning_rate: float,
    settings: dict[str, Any],
    *,
    metric: str,
    early_stopping_patience: int,
) -> TrainingArguments:
    """Build transformers' arguments from its own names, our defaults beneath.

    Args:
        output_dir: folder of the checkpoints.
        learning_rate: the method's default; ``settings`` may name another.
        settings: any of `transformers.TrainingArguments`' names.
        metric: validation metric by which the best checkpoint is kept.
        early_stopping_patience: evaluations without improvement after which training stops; 0 never stops early.

    Raises:
        ConfigError: a name is unknown or reserved, or a value is refused.
    """
    known = {field.name for field in fields(TrainingArguments) if field.init} - _OURS
    for name in settings:
        if name not in known:
            raise ConfigError(
                f"unknown option '{name}'.{suggest(name, sorted(known))} "
                "peft-rag train --help lists the common ones; every name of transformers.TrainingArguments is taken."
            )
    ours = {"learning_rate": learning_rate, "metric_for_best_model": metric, "use_cpu": on_processor(settings)}
    chosen = _DEFAULTS | ours | settings
    best = str(chosen["metric_for_best_model"]).removeprefix("eval_")
    chosen.setdefault("greater_is_better", best not in _LESS_IS_BETTER)
    _check_values(chosen)
    if chosen["eval_strategy"] == "no":
        if early_stopping_patience:
            raise ConfigError("--early_stopping_patience needs evaluation, but eval_strategy is 'no'. Set it to epoch.")
        chosen["load_best_model_at_end"] = False
    try:
        get_reporting_integration_callbacks(chosen["report_to"])  # raises on names it does not know
        return TrainingArguments(
            output_dir=str(output_dir), remove_unused_columns=False, label_names=["labels"], **chosen
        )
    except (ValueError, TypeError, ImportError) as error:
        raise _refused(error) from error


def _check_values(chosen: dict[str, Any]) -> None:
    """Raise `ConfigError` on values that transformers takes and fails on later, or trains nothing with."""
    for name, least in _COUNTS.items():
        if name in chosen:
            check_count(name, chosen[name], least)
    for name in _SIZES & set(chosen):
        value = chosen[name]
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
            raise ConfigError(f"{name} is {value}; it must be a number that is not below 0.")
    for name, reason in _NOT_OURS.items():
        if chosen.get(name):
            raise ConfigError(f"{name} is {chosen[name]}, but {reason}. Leave it out.")
    if not chosen["num_train_epochs"]:
        raise ConfigError(
            "num_train_epochs is 0, with which nothing is trained. --method head trains nothing but a head."
        )


def _refused(error: Exception) -> ConfigError:
    return ConfigError(f"transformers refuses the training options: {' '.join(str(error).split())}")


def train(
    model: RetrievalAugmentedModel,
    train_split: Split,
    validation_split: Split,
    arguments: TrainingArguments,
    *,
    dropout: RetrievalDropout | None = None,
    objective: Objective | None = None,
    early_stopping_patience: int = 0,
    resume: bool = False,
    say: Callable[[str], None] = print,
) -> TrainingReport:
    """Train what is trainable and leave the best weights in the model.

    Where a task writes by the backbone's own head and the method trains none of it, there is nothing to do.

    Args:
        model: with a method attached.
        train_split: what it learns from.
        validation_split: what the best weights are chosen on.
        arguments: from `training_arguments`.
        dropout: which examples are read without their neighbours; none by default.
        objective: what is minimised; the task's own loss by default.
        early_stopping_patience: evaluations without improvement after which training stops; 0 never stops early.
        resume: go on from the last checkpoint in the arguments' output folder, if there is one.
        say: takes a line for each evaluation.

    Raises:
        DivergedError: the loss is not a number.
        TrainingError: nothing is trainable, or no checkpoint can be resumed.
    """
    if not model.trained_state():
        if _untrained_by_choice(model):
            say(f"method '{model.reports[model.adapter].method}' leaves nothing to train: the backbone writes as it is")
            return TrainingReport(0.0, 0.0, 0, 0)
        if model.reports:
            raise TrainingError(
                f"nothing is trainable: adapter '{model.adapter}' is frozen, as one is that was loaded. Train another "
                "beside it (model.add_adapter), or set requires_grad_ on what is to be trained."
            )
        raise TrainingError("nothing is trainable: attach a method first (model.attach('lora')).")
    model.gates.pop(model.adapter, None)  # chosen for the weights as they were
    learned, checked = (dropout or RetrievalDropout()).rows(model, train_split), None
    if arguments.eval_strategy != "no":
        checked = Rows(model.candidates(validation_split), examples=validation_split.examples)
    trainer = _trainer(model, learned, checked, arguments, early_stopping_patience, say)
    trainer.objective = objective or Objective()
    checkpoint = _last_checkpoint(Path(arguments.output_dir)) if resume else None
    result = trainer.go_on(checkpoint)
    seconds = trainer.seconds
    model.forget()
    seen = len(train_split) * result.metrics.get("epoch", arguments.num_train_epochs)
    best = int(trainer.state.best_global_step or 0) if arguments.load_best_model_at_end else 0
    return TrainingReport(seconds, seen / seconds, int(trainer.state.global_step), best)


def _try_optimiser(trainer: ExamplesTrainer) -> None:
    """Make optimiser and schedule once and let them go, so that what they refuse is known before training."""
    if trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled:  # these make their own
        return
    trainer.create_optimizer_and_scheduler(num_training_steps=1)
    trainer.optimizer = trainer.lr_scheduler = None


def _trainer(
    model: RetrievalAugmentedModel,
    learned: Rows,
    checked: Rows | None,
    arguments: TrainingArguments,
    early_stopping_patience: int,
    say: Callable[[str], None],
) -> ExamplesTrainer:
    """Return a trainer of encoded examples that reports progress in this package's way."""
    try:
        trainer = ExamplesTrainer(
            model=model,
            args=arguments,
            train_dataset=learned,
            eval_dataset=checked,
            data_collator=model.collate,
            callbacks=[EarlyStoppingCallback(early_stopping_patience)] if early_stopping_patience else [],
        )
        _try_optimiser(trainer)
    except (RuntimeError, ValueError, TypeError, ImportError) as error:  # e.g. a package of report_to is not installed
        raise _refused(error) from error
    for shipped in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(shipped)
    trainer.add_callback(Progress(say, model.task.main_metric, bar=not arguments.disable_tqdm))
    return trainer


class Progress(ProgressCallback):
    """A bar over the steps with the loss on it, and one line for each look at validation."""

    def __init__(self, say: Callable[[str], None], metric: str, *, bar: bool) -> None:
        super().__init__()
        self.say, self.metric, self.bar = say, metric, bar

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.bar:
            super().on_train_begin(args, state, control, **kwargs)
        if self.training_bar is not None:
            self.training_bar.set_description("training")
            self.training_bar.unit, self.training_bar.leave = "step", False

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.bar:
            super().on_step_end(args, state, control, **kwargs)

    def on_prediction_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Show nothing: validation is short beside training."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if self.training_bar is not None and logs and "loss" in logs:
            self.training_bar.set_postfix_str(f"loss {float(logs['loss']):.3f}")

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        if state.is_world_process_zero and metrics:
            value, loss = metrics.get(f"eval_{self.metric}", math.nan), metrics.get("eval_loss", math.nan)
            with tqdm.external_write_mode():
                self.say(f"epoch {state.epoch:.3g}: validation {self.metric} {100 * value:.1f}, loss {loss:.3f}")
                spread = RetrievalSpread.from_metrics(metrics, "eval_")
                for line in (str(spread), spread.warning) if spread else ():
                    if line:
                        self.say(line)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.bar:
            super().on_train_end(args, state, control, **kwargs)


def _untrained_by_choice(model: RetrievalAugmentedModel) -> bool:
    """Say whether method, head and fusion have no parameters at all, frozen ones included."""
    report = model.reports.get(model.adapter)
    parts = (model.head, model.fusion_module)
    return (
        report is not None
        and not report.trainable_parameters
        and not any(next(part.parameters(), None) is not None for part in parts if part is not None)
    )


def _last_checkpoint(folder: Path) -> Path | None:
    """Return the newest whole checkpoint, or None where there is none yet."""
    steps = {
        int(path.name.removeprefix("checkpoint-")): path
        for path in folder.glob("checkpoint-*")
        if (path / "trainer_state.json").is_file()
    }
    return steps[max(steps)] if steps else None
