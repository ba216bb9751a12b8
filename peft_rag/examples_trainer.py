"""transformers' Trainer over encoded examples: what its checkpoints hold, its order, its loss and its validation."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import SequentialSampler
from transformers import Trainer
from transformers.trainer_pt_utils import LengthGroupedSampler
from transformers.trainer_utils import EvalLoopOutput

from peft_rag.decisions import Decisions
from peft_rag.errors import ConfigError, DivergedError, TrainingError
from peft_rag.files import write_json
from peft_rag.fusion.batching import tokens_in
from peft_rag.objectives.base import Objective
from peft_rag.query_tower.candidates import ranked
from peft_rag.query_tower.monitor import RetrievalSpread
from peft_rag.reading import read_rows
from peft_rag.registry import suggest

if TYPE_CHECKING:
    from peft_rag.model import RetrievalAugmentedModel
    from peft_rag.query_tower.tower import QueryTower

_ELAPSED = "elapsed.json"


class ExamplesTrainer(Trainer):
    """A Trainer whose checkpoints hold trained tensors only, and that stops where the loss is not a number."""

    objective = Objective()
    before, begun = 0.0, 0.0

    @property
    def seconds(self) -> float:
        """How long training has taken so far, with what it took up to the checkpoint that it goes on from."""
        return self.before + time.perf_counter() - self.begun

    def go_on(self, checkpoint: Path | None) -> Any:
        """Train, from a checkpoint if there is one, and return what the Trainer says of it."""
        if checkpoint is not None and (checkpoint / _ELAPSED).is_file():
            self.before = float(json.loads((checkpoint / _ELAPSED).read_text(encoding="utf-8"))["seconds"])
        self.begun = time.perf_counter()
        return self.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        rows = self.train_dataset if train_dataset is None else train_dataset
        batch = self.args.train_batch_size * self.args.gradient_accumulation_steps
        return (
            self.objective.order(rows.rows) or self._by_length(rows, batch) or super()._get_train_sampler(train_dataset)
        )

    def _get_eval_sampler(self, eval_dataset: Any) -> Any:
        """Take the examples as they come: `evaluation_loop` reads the longest first by itself."""
        return SequentialSampler(eval_dataset)

    def _by_length(self, rows: Any, batch: int) -> LengthGroupedSampler | None:
        """Group examples of like length, whether they hold one input or several, where that is asked for."""
        if self.args.train_sampling_strategy != "group_by_length":
            return None
        return LengthGroupedSampler(batch, lengths=[tokens_in(row) for row in rows.rows])

    def create_optimizer(self, *arguments: Any) -> torch.optim.Optimizer:
        """Give the query tower the step size that its options name, if they do."""
        optimizer: torch.optim.Optimizer = super().create_optimizer(*arguments)
        tower = self.model.tower
        if tower is not None and tower.options.learning_rate:
            own = {id(parameter) for parameter in tower.parameters()}
            for group in list(optimizer.param_groups):
                moved = [one for one in group["params"] if id(one) in own]
                group["params"] = [one for one in group["params"] if id(one) not in own]
                if moved:
                    optimizer.add_param_group({**group, "params": moved, "lr": tower.options.learning_rate})
        return optimizer

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        """Write the trained tensors alone, under the name the Trainer looks for, and how long training has taken."""
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        trained = {name: tensor.contiguous().cpu() for name, tensor in self.model.trained_state().items()}
        save_file(trained, folder / "model.safetensors", metadata={"format": "pt"})
        write_json(folder / _ELAPSED, {"seconds": self.seconds})

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Accept that the frozen weights are missing from a checkpoint, and nothing else."""
        if load_result.unexpected_keys:
            raise TrainingError(
                f"the checkpoint holds tensors this run does not train ({load_result.unexpected_keys[0]}, …). "
                "It belongs to another configuration; start again without --resume."
            )

    def compute_loss(self, model: nn.Module, inputs: Any, return_outputs: bool = False, **options: Any) -> Any:
        """Return the task's loss, with what the objective puts beside it."""
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **options)
        beside = self.objective.beside(outputs["features"], inputs["labels"])
        loss = loss if beside is None else loss + beside
        return (loss, outputs) if return_outputs else loss

    def training_step(self, model: nn.Module, inputs: dict[str, Tensor], num_items_in_batch: Any = None) -> Tensor:
        loss: Tensor = super().training_step(model, inputs, num_items_in_batch)
        self.check_finite("the loss", float(loss))
        return loss

    def check_finite(self, what: str, value: float) -> None:
        """Raise when a number that training rests on is none."""
        if not math.isfinite(value):
            raise DivergedError(
                f"{what} is {value} at step {self.state.global_step + 1} with learning rate "
                f"{self._get_learning_rate():.2e}. Lower --learning_rate, or set --max_grad_norm."
            )

    def evaluation_loop(self, dataloader: Any, *arguments: Any, metric_key_prefix: str = "eval", **options: Any) -> Any:
        """Answer validation as predictions are answered, and stop where the loss is not a number.

        Every process answers all of it: validation is short beside training, and an example may take any number of
        decisions, which gathering by examples would cut.
        """
        model, rows, examples = self.model, dataloader.dataset.rows, dataloader.dataset.examples
        decisions = Decisions([len(row["labels"]) for row in rows])
        with self.compute_loss_context_manager():
            read = rows if model.tower is None else _ranked(model, model.tower, rows, self.args.eval_batch_size)
            outputs = read_rows(model, read, decisions, self.args.eval_batch_size)
        given = outputs.log_probs
        targets = torch.cat([row["labels"] for row in rows])
        loss = float(model.task.loss(given, targets))
        self.check_finite("the validation loss", loss)
        scores = model.task.evaluate(given.nan_to_num(nan=-math.inf), targets, examples=examples, resamples=0)
        values = {"loss": loss} | {name: score.value for name, score in scores.items()}
        self._check_metric(values)
        if model.tower is not None:
            k = model.fusion.neighbours_wanted
            values |= RetrievalSpread.of(rows, outputs.read, outputs.weights, k).to_dict()
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in values.items()}
        return EvalLoopOutput(predictions=None, label_ids=None, metrics=metrics, num_samples=len(rows))

    def _check_metric(self, values: dict[str, float]) -> None:
        """Raise `ConfigError` where the best weights are to be known by a metric that the task does not have."""
        wanted = (self.args.metric_for_best_model or "").removeprefix("eval_")
        if self.args.load_best_model_at_end and wanted not in values:
            raise ConfigError(
                f"metric_for_best_model is '{wanted}'.{suggest(wanted, list(values))} Choose {', '.join(values)}."
            )


def _ranked(
    model: RetrievalAugmentedModel, tower: QueryTower, rows: Sequence[dict[str, Any]], batch_size: int
) -> list[dict[str, Any]]:
    """Return encoded examples with the passages that the tower as it is now would have them read."""
    k, chosen = model.fusion.neighbours_wanted, list[dict[str, Any]]()
    with torch.no_grad():
        for start in range(0, len(rows), batch_size):
            chosen += ranked(tower, rows[start : start + batch_size], k).rows
    return chosen
