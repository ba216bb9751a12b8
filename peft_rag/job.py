"""The main job: read, retrieve, measure, train, measure again, save."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peft_rag.config import RunConfig
from peft_rag.data import Splits, read_splits
from peft_rag.errors import ArtefactError, ConfigError, PeftRagError, RetrievalError
from peft_rag.files import refuse_nonempty, write_json
from peft_rag.registry import FUSIONS, TASKS, load, suggest

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import TrainingArguments

    from peft_rag.evaluation.bootstrap import Score
    from peft_rag.fusion.base import Fusion, Memory, Outputs, Split
    from peft_rag.knowledge import Knowledge
    from peft_rag.model import RetrievalAugmentedModel
    from peft_rag.training import TrainingReport

Say = Callable[[str], None]


@dataclass(frozen=True)
class RunResult:
    """What a run left behind.

    Attributes:
        folder: the artefact.
        metrics: the content of its ``metrics.json``.
    """

    folder: Path
    metrics: Mapping[str, Any]


@dataclass(frozen=True)
class Prepared:
    """Everything a run needs before its first step."""

    model: RetrievalAugmentedModel
    splits: Splits
    arguments: TrainingArguments
    train: Split
    validation: Split
    test: Split
    test_name: str


def run(config: RunConfig, say: Say = print) -> RunResult:
    """Train one method with one fusion on one data set and save the artefact.

    The untrained model, retrieval alone, and the trained model without and with retrieval are measured on the test
    split. Checkpoints lie in ``<output>.partial`` until the artefact is whole; a run that was interrupted goes on from
    them with ``resume``.

    Args:
        config: what to run.
        say: takes each line of progress.

    Raises:
        PeftRagError: something the user can mend; nothing half-written is left behind.
    """
    from accelerate import PartialState

    state = PartialState()
    tell = say if state.is_main_process else _silent
    output = Path(config.output)
    with _working_folder(config, output, main=state.is_main_process) as working:
        state.wait_for_everyone()
        prepared = prepare(config, working, tell)
        before = measure_before(prepared, tell)
        report = tune(prepared, config, tell)
        if not state.is_main_process:
            return RunResult(output, {})
        arms = before | measure_after(prepared, tell)
        metrics = _metrics(config, prepared, arms, report)
        prepared.model.save_pretrained(output, metrics=metrics)
    _say_results(arms, prepared, output, tell)
    return RunResult(output, metrics)


def prepare(config: RunConfig, working: Path, say: Say) -> Prepared:
    """Read the data, load the models, retrieve the neighbours; nothing is trained yet."""
    task = make_part(load(TASKS, config.task), "task", _task_options(config))
    fusion: Fusion = make_part(load(FUSIONS, config.fusion), "fusion", config.part_options("fusion"))
    splits = _splits(config, task)
    say(
        f"data: {len(splits.train):,} train, {len(splits.validation):,} validation, {len(splits.test):,} test, "
        f"{len(splits.corpus):,} documents"
    )
    _check_corpus(fusion, splits)

    from transformers import set_seed

    from peft_rag.backbone import load_backbone
    from peft_rag.knowledge import Knowledge, make_retriever
    from peft_rag.methods import resolve
    from peft_rag.model import RetrievalAugmentedModel
    from peft_rag.training import training_arguments

    arguments = training_arguments(
        working / "checkpoints",
        resolve(config.method).learning_rate,
        {"seed": config.seed, **config.training},
        metric=splits.task.main_metric,
        early_stopping_patience=config.early_stopping_patience,
    )
    set_seed(config.seed)
    options = config.part_options("retriever")
    knowledge = Knowledge(
        splits.corpus,
        make_retriever(config.retriever, config.encoder, options),
        config.retriever,
        config.encoder,
        options,
        asdict(splits.fields),
    )
    backbone = load_backbone(config.backbone)
    model = RetrievalAugmentedModel(
        backbone,
        splits.task,
        fusion,
        knowledge,
        max_length=config.max_length,
        head_dropout=max(config.dropout, 0.0),
    ).to(arguments.device)
    _set_dropout(model, config.dropout)
    return Prepared(model, splits, arguments, *_retrieve(knowledge, splits, fusion))


def measure_before(prepared: Prepared, say: Say) -> dict[str, dict[str, Score]]:
    """Score the untrained model (random head on the frozen backbone) and retrieval alone, on the test split."""
    from peft_rag.fusion.none import NoFusion

    model, task = prepared.model, prepared.splits.task
    outputs = model.outputs(prepared.test, fusion=NoFusion(), progress="untrained model")
    targets = task.targets(prepared.test.examples)
    arms = {"untrained": task.evaluate(outputs.log_probs, targets)}
    if all(document.labels for document in prepared.splits.corpus):
        arms["retrieval_alone"] = task.evaluate(_retrieval_alone(prepared, outputs), targets)
    for arm, scores in arms.items():
        say(f"{arm.replace('_', ' ')}: {task.main_metric} {scores[task.main_metric]}")
    return arms


def tune(prepared: Prepared, config: RunConfig, say: Say) -> TrainingReport:
    """Attach the method, start the head from a linear probe, and train."""
    from peft_rag.training import train

    model, task = prepared.model, prepared.splits.task
    if config.head_init == "probe":
        outputs = model.outputs(prepared.train, progress="frozen features")
        task.fit_head(model.head, outputs.features, task.targets(prepared.train.examples))
    options = config.part_options("method")
    say(str(model.attach(config.method, last_layers=config.last_layers or None, **options)))
    model.to(prepared.arguments.device)
    return train(
        model,
        prepared.train,
        prepared.validation,
        prepared.arguments,
        early_stopping_patience=config.early_stopping_patience,
        resume=config.resume,
    )


def measure_after(prepared: Prepared, say: Say) -> dict[str, dict[str, Score]]:
    """Fit the fusion on validation, then score the trained model without and with retrieval, once, on the test split."""
    from peft_rag.fusion.none import NoFusion

    model, task = prepared.model, prepared.splits.task
    memory = model.memory(progress="encoding the corpus")
    checked = model.outputs(prepared.validation, progress="validation")
    targets = task.targets(prepared.validation.examples)
    model.fusions[model.adapter] = model.fusion.fit(checked, prepared.validation, memory, task, targets)
    say(f"fusion: {_settings(model.fusion)}")
    wanted = task.targets(prepared.test.examples)
    fused = model.outputs(prepared.test, progress="test")
    alone = fused
    if model.fusion.reads_neighbours:
        alone = model.outputs(prepared.test, fusion=NoFusion(), progress="test without retrieval")
    arms = {"without_retrieval": task.evaluate(alone.log_probs, wanted)}
    if not isinstance(model.fusion, NoFusion):
        combined = model.fusion.combine(fused, prepared.test, memory, task)
        arms["with_retrieval"] = task.evaluate(combined, wanted)
    return arms


def make_part(plugin: Any, part: str, options: Mapping[str, Any]) -> Any:
    """Make a task or fusion of its options.

    Raises:
        ConfigError: an option is unknown; the message suggests the nearest.
    """
    known = [entry.name for entry in fields(plugin)]
    for name in options:
        if name not in known:
            raise ConfigError(
                f"unknown option '{part}.{name}'.{suggest(name, known)} Options: {', '.join(known) or 'none'} "
                f"(peft-rag {part}s tells more)."
            )
    return plugin(**options)


def _splits(config: RunConfig, task: Any) -> Splits:
    from peft_rag.data import CorpusFields

    return read_splits(
        task,
        train=config.train,
        validation=config.validation,
        test=config.test,
        corpus=config.corpus,
        corpus_fields=CorpusFields(
            config.corpus,
            text_field=config.text_field,
            label_field=config.label_field,
            id_field=config.id_field,
            group_field=config.group_field,
        ),
        validation_share=config.validation_share,
        shots=config.shots,
        seed=config.seed,
    )


def _task_options(config: RunConfig) -> dict[str, Any]:
    names = {"text_field": config.text_field, "label_field": config.label_field, "id_field": config.id_field}
    known = {entry.name for entry in fields(load(TASKS, config.task))}
    return {name: value for name, value in names.items() if name in known} | config.part_options("task")


def _check_corpus(fusion: Fusion, splits: Splits) -> None:
    if len(splits.corpus) < fusion.documents_needed:
        raise RetrievalError(
            f"the corpus '{splits.corpus.name}' has {len(splits.corpus):,} documents, fewer than the "
            f"{fusion.documents_needed} neighbours asked for. Lower --fusion.k or name a larger corpus."
        )
    if fusion.needs_labels:
        unlabelled = next((d.id for d in splits.corpus if not d.labels), None)
        if unlabelled is not None and not getattr(splits.task, "multi_label", False):
            raise RetrievalError(
                f"document '{unlabelled}' of the corpus '{splits.corpus.name}' has no label, but this fusion lets "
                "documents vote. Label every document (--label_field), or use --fusion concat or none."
            )


def _retrieve(knowledge: Knowledge, splits: Splits, fusion: Fusion) -> tuple[Split, Split, Split, str]:
    """Retrieve once per split; a training example never sees itself or its double."""
    from peft_rag.fusion.knn import KnnFusion

    separate = not splits.fields.is_training_data
    voters = KnnFusion(space="retriever").neighbours_wanted if all(d.labels for d in splits.corpus) else 0
    most = max(fusion.neighbours_wanted, voters)
    train = knowledge.split(
        splits.train,
        fusion.neighbours_wanted if fusion.reads_neighbours else 0,
        name="train",
        same_data=not separate,
        exclude_duplicates=True,
    )
    validation = knowledge.split(
        splits.validation,
        most,
        name="validation",
        same_data=splits.validation_in_corpus,
        exclude_duplicates=separate or splits.validation_in_corpus,
    )
    if not splits.test:
        return train, validation, validation, "validation, on which settings were chosen too"
    test = knowledge.split(splits.test, most, name="test", exclude_duplicates=separate)
    return train, validation, test, "test"


def _retrieval_alone(prepared: Prepared, untrained: Outputs) -> Tensor:
    """Classify the test split by neighbours' labels alone, in the retriever's space, k and T chosen on validation."""
    import torch

    from peft_rag.fusion.base import Outputs
    from peft_rag.fusion.knn import KnnFusion

    task = prepared.splits.task
    targets = task.targets(prepared.validation.examples)
    nothing = Outputs(torch.zeros(len(targets), *untrained.log_probs.shape[1:]), untrained.features[:0])
    memory = _targets_of_corpus(prepared)
    alone = KnnFusion(space="retriever", weight=1.0).fit(nothing, prepared.validation, memory, task, targets)
    return alone.combine(untrained, prepared.test, memory, task)


def _targets_of_corpus(prepared: Prepared) -> Memory:
    from peft_rag.fusion.base import Memory
    from peft_rag.model import labelled_examples

    assert prepared.model.knowledge is not None
    return Memory(prepared.splits.task.targets(labelled_examples(prepared.model.knowledge)))


def _set_dropout(model: RetrievalAugmentedModel, share: float) -> None:
    from torch import nn

    if share < 0:
        return
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = share


def _metrics(
    config: RunConfig, prepared: Prepared, arms: Mapping[str, Mapping[str, Score]], report: TrainingReport
) -> dict[str, Any]:
    from peft_rag.artefact import versions

    model = prepared.model
    trained = sum(tensor.numel() for tensor in model.trained_state().values())
    total = sum(parameter.numel() for parameter in model.parameters())
    after = arms.get("with_retrieval", arms["without_retrieval"])
    return {
        "before": _values(arms["untrained"]),
        "after": _values(after),
        "test": _values(after),
        "arms": {arm: {name: score.to_dict() for name, score in scores.items()} for arm, scores in arms.items()},
        "test_examples": len(prepared.test),
        "trainable_parameters": trained,
        "trainable_percent": 100 * trained / total,
        "artefact_bytes": 0,
        "train_seconds": report.seconds,
        "examples_per_second": report.examples_per_second,
        "steps": report.steps,
        "best_step": report.best_step,
        "peak_memory_bytes": _peak_memory(),
        "data": {
            "train": config.train,
            "validation": config.validation or f"{config.validation_share:.0%} of train",
            "test": config.test or prepared.test_name,
            "corpus": config.corpus or config.train,
        },
        "fusion": model.fusion.to_dict(),
        "seed": config.seed,
        "config": config.to_dict(),
        "versions": versions(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _values(scores: Mapping[str, Score]) -> dict[str, float]:
    return {name: score.value for name, score in scores.items()}


def _peak_memory() -> int:
    """Return the largest resident memory of this process in bytes, the accelerator's added where there is one."""
    import resource
    import sys

    import torch

    unit = 1 if sys.platform == "darwin" else 1024
    device = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit + int(device)


def _say_results(arms: Mapping[str, Mapping[str, Score]], prepared: Prepared, output: Path, say: Say) -> None:
    names = list(arms["untrained"])
    width = max(len(arm) for arm in arms) + 2
    say("")
    say(f"in percent on {len(prepared.test):,} examples ({prepared.test_name}), 95% bootstrap intervals in brackets")
    say("".ljust(width) + "".join(name.ljust(20) for name in names))
    for arm, scores in arms.items():
        say(arm.replace("_", " ").ljust(width) + "".join(str(scores[name]).ljust(20) for name in names))
    size = sum(path.stat().st_size for path in output.iterdir())
    say("")
    say(f"saved: {output} ({size / 1000:,.0f} kB)")


def _settings(fusion: Fusion) -> str:
    return ", ".join(f"{name} {value}" for name, value in fusion.to_dict().items()) or "none"


def _silent(line: str) -> None:
    """Say nothing: only the main process talks."""


@contextmanager
def _working_folder(config: RunConfig, output: Path, *, main: bool) -> Iterator[Path]:
    """Give the folder of checkpoints; it vanishes with the artefact's birth or a user's error, and outlives a kill."""
    working = output.with_name(output.name + ".partial")
    if main:
        refuse_nonempty(output)
        _claim(config, working)
    try:
        yield working
    except PeftRagError:
        if main and not config.resume:
            shutil.rmtree(working, ignore_errors=True)
        raise
    if main:
        shutil.rmtree(working, ignore_errors=True)


def _claim(config: RunConfig, working: Path) -> None:
    import json

    about = {name: value for name, value in config.to_dict().items() if name != "resume"}
    record = working / "run.json"
    if not working.exists():
        write_json(record, about)
        return
    if not config.resume:
        raise ArtefactError(
            f"'{working}' holds an unfinished run. Go on with it by --resume, or remove that folder to start again."
        )
    try:
        earlier = json.loads(record.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        earlier = {}
    differing = sorted(name for name in about if earlier.get(name) != json.loads(json.dumps(about[name])))
    if differing:
        raise ConfigError(
            f"cannot resume '{working}': {', '.join(differing)} differ from the unfinished run. "
            "Resume with the same configuration, or remove that folder to start again."
        )
