"""One training of one candidate, and what each fusion makes of it on validation."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from peft_rag.benchmark.results import DIVERGED, DONE, FAILED
from peft_rag.config import RunConfig, override
from peft_rag.errors import DivergedError
from peft_rag.evaluation.statistics import MEAN
from peft_rag.parts import make_part
from peft_rag.recommendation.candidates import Candidate, settled
from peft_rag.registry import FUSIONS, load
from peft_rag.tasks.base import LEAST_LOG_PROB

if TYPE_CHECKING:
    from torch import Tensor

    from peft_rag.fusion.base import Fusion, Memory, Outputs, Split
    from peft_rag.job import Prepared
    from peft_rag.tasks.base import Example, Task

FOLDS = 2
"""Parts that validation is cut into to fit a fusion; each fit costs about as much as a short training."""


@dataclass(frozen=True)
class Answered:
    """What one fusion answered on validation, none of it fitted to the example that it answers.

    Attributes:
        score: the task's main metric.
        loss: in nats an example.
        tallies: what each example adds to the main metric, in the order of the data.
        statistic: by name, which makes that metric of them.
    """

    score: float
    loss: float
    tallies: tuple[tuple[float, ...], ...]
    statistic: str = MEAN.name


@dataclass(frozen=True)
class Trial:
    """What came of a training.

    Attributes:
        status: ``done``, ``failed`` or ``diverged``.
        steps: it was given.
        seconds: all of it took.
        train_seconds: of them, the optimiser's steps and looks at validation.
        pass_seconds: of one text through the model.
        error: one line where it is not done.
        answers: by fusion.
    """

    status: str
    steps: int
    seconds: float
    train_seconds: float = 0.0
    pass_seconds: float = 0.0
    error: str = ""
    answers: Mapping[str, Answered] = field(default_factory=dict)

    @property
    def best(self) -> tuple[float, float]:
        """What a rung ranks by: the best fusion's score and, negated, its loss."""
        return max((answered.score, -answered.loss) for answered in self.answers.values())


class Trials:
    """Runs candidates in this process, one after the other; what all of them have in common is computed once."""

    def __init__(self, base: RunConfig) -> None:
        self.base = override(base, test="", resume=False, training={"disable_tqdm": True, **base.training})
        self._probes: dict[tuple[str, ...], dict[str, Tensor]] = {}

    def run(self, candidate: Candidate, steps: int) -> Trial:
        """Train a candidate anew and judge it on validation; whatever goes wrong is a result too."""
        import gc

        begun = time.perf_counter()
        try:
            trial = self._trained(candidate, steps)
        except DivergedError as error:
            return Trial(DIVERGED, steps, time.perf_counter() - begun, error=_one_line(error))
        except Exception as error:  # of a method of anyone's, or of memory: the others go on
            told = f"{type(error).__name__}: {_one_line(error)}"
            return Trial(FAILED, steps, time.perf_counter() - begun, error=told)
        finally:
            gc.collect()  # a Trainer and its model hold each other, and memory is short where models are large
        return replace(trial, seconds=time.perf_counter() - begun)

    def _trained(self, candidate: Candidate, steps: int) -> Trial:
        from peft_rag.job import prepare, refit_head, tune

        with tempfile.TemporaryDirectory() as folder:
            config = override(candidate.config(self.base, steps), output=str(Path(folder) / "out"))
            prepared = prepare(config, Path(folder), _silent)
            prepared.model.progress_bars = False
            if config.head_init == "probe" and prepared.splits.task.probes:
                self._start_from_probe(prepared, candidate.fusions)
            report = tune(prepared, override(config, head_init="random"), _silent)
            begun = time.perf_counter()
            checked = prepared.model.outputs(prepared.validation)
            each = (time.perf_counter() - begun) / len(prepared.validation)
            if config.head_refit:
                refit_head(prepared, checked, _silent)
            checked = prepared.model.judge(checked, prepared.validation)
            # The run's own fusion first: the corpus is encoded for it already.
            given = {name: self._answered(prepared, checked, name) for name in reversed(candidate.fusions)}
        return Trial(DONE, steps, 0.0, report.seconds, each, answers=given)

    def _start_from_probe(self, prepared: Prepared, fusions: tuple[str, ...]) -> None:
        """Set the head to the probe of the frozen features, which is the same whatever the method."""
        model, task = prepared.model, prepared.splits.task
        if fusions not in self._probes:
            with model.disable_adapter():
                features = model.outputs(prepared.train).features
            task.fit_head(model.head, features, task.targets(prepared.train.examples))
            self._probes[fusions] = {name: tensor.clone() for name, tensor in model.head.state_dict().items()}
        model.head.load_state_dict(self._probes[fusions])

    def _answered(self, prepared: Prepared, checked: Outputs, name: str) -> Answered:
        model, task = prepared.model, prepared.splits.task
        options = settled(self.base, "head", {}, name).part_options("fusion")
        fusion: Fusion = make_part(load(FUSIONS, name), "fusion", options)
        if type(fusion) is not type(model.fusion):
            model.fusion = fusion
        log_probs = cross_fitted(fusion, checked, prepared.validation, model.memory(), task)
        examples = prepared.validation.examples
        return judged(task, log_probs, task.targets(examples), examples)


def cross_fitted(fusion: Fusion, outputs: Outputs, split: Split, memory: Memory | None, task: Task) -> Tensor:
    """Answer each example with the fusion fitted to others, so that none is judged by what was chosen on it.

    The N examples are cut into two parts by position; each part is answered by the fusion as fitted to the rest.

    Returns:
        log-probabilities in nats, shaped as those of ``outputs``.

    Source: Stone 1974, doi:10.1111/j.2517-6161.1974.tb00994.x (cross-validatory assessment of a choice).
    """
    given = len(split)
    answers = outputs.log_probs.clone()
    parts = [list(range(start, given, FOLDS)) for start in range(min(FOLDS, given))]
    for held in parts if given > 1 else []:
        rest = sorted(set(range(given)) - set(held))
        targets = task.targets([split.examples[place] for place in rest])
        fitted = fusion.fit(outputs.of(rest), split.of(rest), memory, task, targets)
        rows = outputs.decisions.take(held) if outputs.decisions else held
        answers[rows] = fitted.combine(outputs.of(held), split.of(held), memory, task).to(answers.dtype)
    return answers


def judged(task: Task, log_probs: Tensor, targets: Tensor, examples: Sequence[Example] = ()) -> Answered:
    """Score answers as a benchmark does: the main metric, what it is made of, and the loss."""
    score = task.evaluate(log_probs, targets, examples=examples, resamples=0)[task.main_metric].value
    tallies = tuple(tuple(row) for row in task.tally(log_probs, targets, examples).tolist())
    loss = float(task.loss(log_probs.clamp(min=LEAST_LOG_PROB), targets))
    return Answered(score, loss, tallies, task.statistic)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _silent(line: str) -> None:
    """Say nothing: the search speaks of whole trials."""
