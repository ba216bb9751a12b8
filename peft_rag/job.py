"""The main job: read, retrieve, measure, train, measure again, save."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peft_rag.combinations import check_backbone, check_corpus, check_neighbours, check_query_tower, check_task
from peft_rag.config import WITHIN_DOCUMENT, RunConfig
from peft_rag.data import Splits, read_splits, without
from peft_rag.errors import ConfigError
from peft_rag.evaluation.overlap import overlap_lines
from peft_rag.measuring import (
    found_lines,
    kept_lines,
    measure_after,
    measure_before,
    measure_overlap,
    scores_of,
    write_after,
    write_before,
)
from peft_rag.parts import make_part
from peft_rag.refusals import SKIP
from peft_rag.registry import FUSIONS, OBJECTIVES, TASKS, load
from peft_rag.results import metrics, table
from peft_rag.retrieving import query_tower, retrieved
from peft_rag.workspace import working_folder

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import TrainingArguments

    from peft_rag.fusion.base import Fusion, Outputs, Split
    from peft_rag.long_prompts import LongInputs
    from peft_rag.model import RetrievalAugmentedModel
    from peft_rag.tasks.base import Task
    from peft_rag.training import TrainingReport

Say = Callable[[str], None]

_REFIT_STRENGTHS = (1.0, 10.0, 100.0)


@dataclass(frozen=True)
class RunResult:
    """What a run left behind.

    Attributes:
        folder: the artefact.
        metrics: the content of its ``metrics.json``.
        answers: what it answered on the test split, and to what.
    """

    folder: Path
    metrics: Mapping[str, Any]
    answers: Answers | None = None


@dataclass(frozen=True)
class Answers:
    """What each arm of a run answered on the test split.

    Attributes:
        log_probs: by arm, in nats, as the task gives them; one row an example.
        targets: of the same examples.
        texts: what each arm wrote to the first of them, where the task writes text.
        outputs: what the trained model gave for the split as its fusion reads it, before neighbours voted.
    """

    log_probs: Mapping[str, Tensor]
    targets: Tensor
    texts: Mapping[str, list[str]] = field(default_factory=dict)
    outputs: Outputs | None = None


@dataclass(frozen=True)
class Prepared:
    """Everything a run needs before its first step."""

    model: RetrievalAugmentedModel
    splits: Splits
    arguments: TrainingArguments
    train: Split
    validation: Split
    test: Split


Observe = Callable[[Prepared, Answers], None]


def run(config: RunConfig, say: Say = print, *, observe: Observe | None = None) -> RunResult:
    """Train one method with one fusion on one data set and save the artefact.

    The untrained model, retrieval alone, and the trained model without and with retrieval are measured on the test
    split. Checkpoints lie in ``<output>.partial`` until the artefact is whole; a run that was interrupted goes on from
    them with ``resume``.

    Args:
        config: what to run.
        say: takes each line of progress.
        observe: given the trained model with its splits and what it answered, before it is saved.

    Raises:
        PeftRagError: something the user can mend; nothing half-written is left behind.
    """
    from accelerate import PartialState

    from peft_rag.devices import computing_for, on_processor, wait_for_everyone

    state = PartialState(cpu=on_processor(config.training))
    tell = say if state.is_main_process else _silent
    output = Path(config.output)
    with computing_for(config.training), working_folder(config, output, main=state.is_main_process) as working:
        wait_for_everyone(state)
        prepared = prepare(config, working, tell)
        prepared.model.progress_bars = state.is_main_process
        prepared = with_voters(prepared)
        for line in (*kept_lines(prepared), *found_lines(prepared)):
            tell(line)
        before = measure_before(prepared, tell)
        texts = write_before(prepared)
        report = tune(prepared, config, tell)
        if not state.is_main_process:
            return RunResult(output, {})
        prepared = with_tuned_neighbours(prepared)
        answers = _answered(prepared, config, before, texts, tell)
        if observe is not None:
            observe(prepared, answers)
        arms = scores_of(prepared, answers)
        overlap = measure_overlap(prepared, answers)
        measured = metrics(
            config,
            prepared.model,
            arms,
            report,
            test_examples=len(prepared.test),
            overlap=overlap,
            left_out=prepared.splits.left_out,
        )
        prepared.model.save_pretrained(output, metrics=measured)
    size = sum(path.stat().st_size for path in output.rglob("*") if path.is_file())
    for line in (
        "",
        *table(arms, measured["data"]["test"], len(prepared.test)),
        *overlap_lines(overlap),
        "",
        f"saved: {output} ({size:,} bytes)",
    ):
        tell(line)
    return RunResult(output, measured, answers)


def _answered(
    prepared: Prepared, config: RunConfig, before: Mapping[str, Tensor], texts: Mapping[str, list[str]], say: Say
) -> Answers:
    """Let the trained model answer, after what is chosen on validation has been; add what was answered before it."""
    checked = prepared.model.outputs(prepared.validation, progress="validation")
    if config.head_refit:
        refit_head(prepared, checked, say)
    targets = prepared.splits.task.targets(prepared.test.examples)
    after, outputs = measure_after(prepared, checked, say, fallback=config.fallback)
    return Answers({**before, **after}, targets, {**texts, **write_after(prepared)}, outputs)


def prepare(config: RunConfig, working: Path, say: Say) -> Prepared:
    """Read the data, load the models, attach the method, retrieve what is learned from; nothing is trained yet.

    Where the fusion learns without neighbours none are searched, and the retriever's encoder is not loaded.
    """
    fusion: Fusion = make_part(load(FUSIONS, config.fusion), "fusion", config.part_options("fusion"))
    check_neighbours(config, fusion)
    check_query_tower(config, fusion)
    splits = read_data(config)
    for line in _data_lines(splits):
        say(line)
    check_task(config, fusion, splits.task)
    check_backbone(config, fusion, splits.task)
    check_corpus(fusion, splits)

    from transformers import set_seed

    from peft_rag.backbone import load_backbone
    from peft_rag.knowledge import knowledge_for
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
    knowledge = knowledge_for(config, splits)
    tower = query_tower(config, knowledge)
    backbone = load_backbone(config.backbone_name, head=splits.task.backbone_head)
    model = RetrievalAugmentedModel(
        backbone, splits.task, fusion, knowledge, max_length=config.max_length, head_dropout=max(config.dropout, 0.0)
    )
    splits = replace(splits, task=model.task)
    if config.long_inputs == WITHIN_DOCUMENT:
        model.long_inputs[model.adapter] = _long_inputs(config, model, splits)
    attached = model.attach(config.method, last_layers=config.last_layers or None, **config.part_options("method"))
    say(str(attached))
    if tower is not None:
        model.search_with(tower)
        say(f"query tower: {tower.report}")
    model.to(arguments.device)
    _set_dropout(model, config.dropout)
    if config.on_bad_record == SKIP:
        splits = _readable(model, splits, say)
    return Prepared(model, splits, arguments, *retrieved(model, splits, search=fusion.reads_neighbours))


def _data_lines(splits: Splits) -> Iterator[str]:
    """Say how much data there is, what of it was left out, and what its task has to note."""
    yield (
        f"data: {len(splits.train):,} train, {len(splits.validation):,} validation, {len(splits.test):,} test, "
        f"{len(splits.corpus):,} documents"
    )
    for name, left_out in splits.left_out.items():
        yield from left_out.lines(name)
        yield from (f"{name}: {note}" for note in splits.task.notes(getattr(splits, name)))


def with_voters(prepared: Prepared) -> Prepared:
    """Retrieve what is measured besides: neighbours of validation and test that vote after training, or alone."""
    if prepared.model.fusion.reads_neighbours:
        return prepared
    train, validation, test = retrieved(prepared.model, prepared.splits, search=True)
    return replace(prepared, train=train, validation=validation, test=test)


def with_tuned_neighbours(prepared: Prepared) -> Prepared:
    """Retrieve anew by the query tower as it was trained, where there is one: what answers rest on from now on."""
    if prepared.model.tower is None:
        return prepared
    train, validation, test = retrieved(prepared.model, prepared.splits, search=True, tower=prepared.model.tower)
    return replace(prepared, train=train, validation=validation, test=test)


def tune(prepared: Prepared, config: RunConfig, say: Say) -> TrainingReport:
    """Start the head from a linear probe of the frozen features, and train."""
    from peft_rag.frozen_features import frozen_outputs
    from peft_rag.rows import RetrievalDropout
    from peft_rag.training import train

    model, task = prepared.model, prepared.splits.task
    if config.head_init == "probe" and task.probes:
        outputs = frozen_outputs(model, prepared.train, progress="frozen features")
        task.fit_head(model.head, outputs.features, task.targets(prepared.train.examples))
    return train(
        model,
        prepared.train,
        prepared.validation,
        prepared.arguments,
        dropout=RetrievalDropout(config.retrieval_dropout, config.retrieval_dropout_by, config.seed),
        objective=make_part(load(OBJECTIVES, config.objective), "objective", config.part_options("objective")),
        early_stopping_patience=config.early_stopping_patience,
        resume=config.resume,
        say=say,
    )


def refit_head(prepared: Prepared, checked: Outputs, say: Say) -> None:
    """Fit the head once more to the tuned features where that lowers the loss on validation.

    The method has moved the features under a head that moved little; a probe of the new features costs seconds.
    """
    import copy

    model, task = prepared.model, prepared.splits.task
    if not task.probes:
        return
    features, targets = _train_features(prepared), task.targets(prepared.train.examples)
    wanted = task.targets(prepared.validation.examples)
    best = (float("inf"), "as trained", copy.deepcopy(model.head.state_dict()))
    for strength in (None, *_REFIT_STRENGTHS):
        if strength is not None:
            task.fit_head(model.head, features, targets, strength)
        judged = checked if strength is None else model.judge(checked, prepared.validation)
        loss = float(task.loss(judged.log_probs, wanted))
        if loss < best[0]:
            what = f"refitted, strength {strength}" if strength else "as trained"
            best = (loss, what, copy.deepcopy(model.head.state_dict()))
    model.head.load_state_dict(best[2])
    say(f"head: {best[1]} (validation loss {best[0]:.3f})")


def _train_features(prepared: Prepared) -> Tensor:
    """Return the tuned features of the training examples, out of the encoded corpus where they are its documents.

    Where no fusion asks for the encoded corpus it is encoded all the same, so that a run without retrieval and the arm
    without retrieval of another are one, bit for bit: what a text is batched with shows in its features' last digits.
    """
    from peft_rag.fusion.base import Split
    from peft_rag.knowledge import labelled_examples

    model = prepared.model
    if model.fusion.reads_neighbours or not prepared.splits.fields.is_training_data:
        return model.outputs(prepared.train, progress="tuned features").features
    assert model.knowledge is not None
    memory = model.memory(progress="encoding the corpus")
    if memory is not None and memory.features is not None:
        features, decisions = memory.features, memory.decisions
    else:
        documents = Split(labelled_examples(model.knowledge, prepared.splits.task))
        outputs = model.outputs(documents, progress="encoding the corpus")
        features, decisions = outputs.features, outputs.decisions
    place = {document.id: number for number, document in enumerate(prepared.splits.corpus)}
    places = [place[example.id] for example in prepared.train.examples]
    return features[places if decisions is None else decisions.take(places)]


def read_data(config: RunConfig) -> Splits:
    """Read the examples of a run and its corpus, with the task that knows their labels; nothing heavy is loaded."""
    from peft_rag.data import CorpusFields

    task: Task = make_part(load(TASKS, config.task), "task", _task_options(config))
    if task.generates:
        from peft_rag.backbone import load_tokenizer

        task = task.with_tokenizer(load_tokenizer(config.backbone_name))
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
        label_documents=config.label_documents,
        on_bad_record=config.on_bad_record,
    )


def _task_options(config: RunConfig) -> dict[str, Any]:
    if "labels" in config.part_options("task"):
        raise ConfigError("task.labels is no option: labels are those of the training data. Leave it out.")
    known = {entry.name for entry in fields(load(TASKS, config.task))}
    shared = ("text_field", "label_field", "id_field", "group_field")
    return {name: getattr(config, name) for name in shared if name in known} | config.part_options("task")


def _readable(model: RetrievalAugmentedModel, splits: Splits, say: Say) -> Splits:
    """Leave out what does not fit into the window, as documents too where the training data is the corpus."""
    from peft_rag.encoding import check_readable

    kept = without(splits, lambda examples: check_readable(model, examples))
    assert model.knowledge is not None
    model.knowledge = replace(model.knowledge, corpus=kept.corpus, fields=asdict(kept.fields))
    check_corpus(model.fusion, kept)
    for name, given in kept.left_out.items():
        if given != splits.left_out[name]:
            for line in given.lines(f"{name}, read by the backbone"):
                say(line)
    return kept


def _long_inputs(config: RunConfig, model: RetrievalAugmentedModel, splits: Splits) -> LongInputs:
    """Learn what to read of long texts; where neighbours are read beside them, half of the window is left to these."""
    from peft_rag.knowledge import make_encoder
    from peft_rag.long_prompts import long_inputs_for

    window = config.max_length - model.tokenizer.num_special_tokens_to_add()
    window -= model.task.answer_tokens if model.decoder_start is None else 0
    if model.fusion.reads_neighbours:
        window //= 2
    return long_inputs_for(model.task, splits.train, make_encoder(config.encoder), model.tokenizer, window)


def _set_dropout(model: RetrievalAugmentedModel, share: float) -> None:
    """Set the dropout of everything but the method's own modules, which have options of their own."""
    from torch import nn

    from peft_rag.methods.audit import backbone_modules

    if share < 0:
        return
    for module in backbone_modules(model):
        if isinstance(module, nn.Dropout):
            module.p = share


def _silent(line: str) -> None:
    """Say nothing: only the main process talks."""
