"""The conformance kit of tasks."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from peft_rag.backbone import as_backbone
from peft_rag.decisions import Decisions
from peft_rag.errors import ConformanceError
from peft_rag.evaluation.statistics import STATISTICS
from peft_rag.fusion.base import Split
from peft_rag.generation import write
from peft_rag.methods import resolve
from peft_rag.model import RetrievalAugmentedModel
from peft_rag.prediction import asked
from peft_rag.records import Record
from peft_rag.tasks.base import Example, Task
from peft_rag.testing.case import Case
from peft_rag.testing.fusions import backbone_fingerprint, expect_close, headless, train_steps, word_tokenizer
from peft_rag.testing.methods import MakeBackbone

READ = "records are read with labels and without, each under an id of its own"
ASKED = "its sample can be read as what a model is asked"
OPTIONS = "settings and labels survive JSON"
ROWS = "answers, targets and decisions are as many"
SUM = "probabilities sum to one"
TALLY = "tallies add up to the main metric, as the task's statistic counts them"
LOSS = "the loss is the mean negative log-likelihood"
PERFECT = "right answers score 1, and decode to what they are right about"
WRITES = "a text that is written does not depend on what it is batched with"
BATCH = "an answer does not depend on what it is batched with"
FROZEN = "training leaves the backbone as it was"
LEARNS = "training lowers the loss, and every trained tensor receives a gradient"
RELOAD = "trained tensors in a fresh model give the same answers"

_MAX_LENGTH = 32


@dataclass(frozen=True)
class TaskCheck:
    """What `check_task` found to hold.

    Attributes:
        checked: the properties that hold.
    """

    checked: tuple[str, ...]

    def __str__(self) -> str:
        """Say it in a few lines."""
        return "\n".join(f"holds: {name}" for name in self.checked)


@dataclass
class _Case(Case):
    """One task on one backbone, and what has been found so far."""

    task: Task
    records: Sequence[Record]
    make_backbone: MakeBackbone
    method: str

    def model(self, task: Task) -> RetrievalAugmentedModel:
        """Make the model, the same weights at each call, its method attached."""
        tokenizer, plain = word_tokenizer(), self.make_backbone()
        if task.appends:
            tokenizer.eos_token = "[SEP]"
        backbone = as_backbone(plain if task.appends else headless(plain), tokenizer, "tiny")
        torch.manual_seed(0)
        model = RetrievalAugmentedModel(backbone, task, max_length=_MAX_LENGTH)
        model.progress_bars = False
        model.attach(self.method)
        model.eval()
        return model


def check_task(
    task: Task, records: Sequence[Mapping[str, Any]], make_backbone: MakeBackbone, method: str = "lora"
) -> TaskCheck:
    """Check that a task keeps its promises on a backbone.

    Records are read with labels and without, and so is the task's sample; settings survive JSON; answers, targets and
    decisions are as many; probabilities sum to one and the loss is their mean negative logarithm; right answers score
    1 and decode to what they are right about, or a text that is written does not depend on its batch; an answer does
    not depend on its batch; training lowers the loss, gives a gradient to every trained tensor and changes nothing of
    the backbone; the trained tensors in a fresh model give the same answers.

    Args:
        task: as a user makes it, knowing no labels yet.
        records: a few labelled ones, of the words w0 … w35.
        make_backbone: makes a small backbone with a vocabulary of 40, the same weights at each call.
        method: the PEFT method that is trained.

    Returns:
        What was checked.

    Raises:
        ConformanceError: a property does not hold; the message begins with its name.
        PeftRagError: task and backbone cannot be joined at all.
    """
    numbered = [Record(fields, "records", number, "row") for number, fields in enumerate(records, start=1)]
    case = _Case(task, numbered, make_backbone, method)
    examples = _check_reading(case)
    learned = task.with_labels_of(examples)
    model = case.model(learned)
    _check_sample(case, model.task)
    _check_settings(case, model.task)
    _check_decoding(case, model, examples)
    _check_answers(case, model, examples)
    _check_training(case, model, examples)
    return TaskCheck(tuple(case.checked))


def _check_reading(case: _Case) -> list[Example]:
    with case.property(READ):
        examples = case.task.read(case.records)
        bare = case.task.read(case.records, labelled=False)
        if [replace(example, labels=None) for example in examples] != bare:
            raise ConformanceError(f"{READ}: the same records give other inputs when labels are left aside")
        if any(example.labels is None for example in examples):
            raise ConformanceError(f"{READ}: an example of a labelled record has no labels")
        if len({example.id for example in examples}) != len(case.records):
            raise ConformanceError(f"{READ}: {len(case.records)} records do not give as many examples of different ids")
    return examples


def _check_sample(case: _Case, task: Task) -> None:
    with case.property(ASKED):
        [example] = asked(task, [task.sample])
        if example.labels is not None:
            raise ConformanceError(f"{ASKED}: {task.sample!r} is read with the answer {example.labels}")


def _check_settings(case: _Case, task: Task) -> None:
    with case.property(OPTIONS):
        again = type(task).from_dict(json.loads(json.dumps(task.to_dict())))
        if again != task:
            raise ConformanceError(f"{OPTIONS}: {task} came back as {again}")


def _check_decoding(case: _Case, model: RetrievalAugmentedModel, examples: Sequence[Example]) -> None:
    task = model.task
    if task.generates:
        _check_writing(case, model, examples)
        return
    with case.property(PERFECT):
        targets = task.targets(examples)
        perfect = task.vote(targets).clamp(min=1e-9).log()
        score = task.evaluate(perfect, targets, examples=examples, resamples=0)[task.main_metric].value
        if abs(score - 1) > 1e-6:
            raise ConformanceError(f"{PERFECT}: {task.main_metric} of right answers is {score}")
        said = task.decode(perfect, examples)
        if [labels for labels, _ in said] != [example.labels for example in examples]:
            raise ConformanceError(f"{PERFECT}: right answers decode to {[labels for labels, _ in said]}")
        json.dumps([task.answer(example, labels) for example, (labels, _) in zip(examples, said, strict=True)])


def _check_answers(case: _Case, model: RetrievalAugmentedModel, examples: Sequence[Example]) -> None:
    task, split = model.task, Split(examples)
    targets, decisions = task.targets(examples), Decisions.on(task, examples)
    outputs = model.outputs(split)
    with case.property(ROWS):
        rows = {"decisions": sum(decisions.counts), "targets": len(targets), "answers": len(outputs.log_probs)}
        rows |= {"features": len(outputs.features), "right": len(task.right(outputs.log_probs, targets))}
        if len(set(rows.values())) != 1:
            raise ConformanceError(f"{ROWS}: {rows}")
    if not task.generates:
        with case.property(SUM):
            expect_close(SUM, outputs.log_probs.exp().sum(-1), torch.ones(outputs.log_probs.shape[:-1]))
    with case.property(TALLY):
        statistic = STATISTICS[task.statistic]
        tallies = task.tally(outputs.log_probs, targets, examples)
        score = task.evaluate(outputs.log_probs, targets, examples=examples, resamples=0)[task.main_metric].value
        added = float(statistic.of(tallies.mean(axis=0)))
        if tallies.shape != (len(examples), len(statistic.columns)) or abs(added - score) > 1e-6:
            raise ConformanceError(f"{TALLY}: {task.main_metric} is {score}, but tallies make {added}")
    with case.property(LOSS):
        likelihood = task.log_likelihood(outputs.log_probs, targets)
        labels = len(outputs.log_probs) if task.generates else outputs.log_probs[..., 0].numel()
        expect_close(LOSS, task.loss(outputs.log_probs, targets), -likelihood.sum() / labels)
    with case.property(BATCH):
        expect_close(BATCH, outputs.log_probs, model.outputs(split, batch_size=1).log_probs)
        for place in range(len(examples)):
            alone = model.outputs(Split(examples[place : place + 1])).log_probs
            expect_close(BATCH, outputs.log_probs[decisions.take([place])], alone)


def _check_writing(case: _Case, model: RetrievalAugmentedModel, examples: Sequence[Example]) -> None:
    with case.property(WRITES):
        together = write(model, examples)
        for example, (text, probability) in zip(examples, together, strict=True):
            alone, own = write(model, [example])[0]
            if alone != text or abs(own - probability) > 1e-4:
                raise ConformanceError(f"{WRITES}: '{text}' in a batch, '{alone}' alone")
        json.dumps([model.task.answer(example, ("w1",)) for example in examples])


def _check_training(case: _Case, model: RetrievalAugmentedModel, examples: Sequence[Example]) -> None:
    split = Split(examples)
    before, loss = backbone_fingerprint(model), _loss(model, split)
    with case.property(LEARNS):
        without = train_steps(model, split, resolve(case.method).learning_rate)
        if without:
            raise ConformanceError(f"{LEARNS}: no gradient reaches {without[0]}")
        after = _loss(model, split)
        if not after < loss:
            raise ConformanceError(f"{LEARNS}: the loss went from {loss} to {after}")
    with case.property(FROZEN):
        if backbone_fingerprint(model) != before and case.method != "full":
            raise ConformanceError(f"{FROZEN}: a tensor of the backbone changed")
    with case.property(RELOAD):
        fresh = case.model(model.task)
        fresh.load_state_dict(model.trained_state(), strict=False)
        expect_close(RELOAD, fresh.outputs(split).log_probs, model.outputs(split).log_probs)


def _loss(model: RetrievalAugmentedModel, split: Split) -> float:
    outputs: Tensor = model.outputs(split).log_probs
    return float(model.task.loss(outputs, model.task.targets(split.examples)))
