"""The work of a benchmark, one piece a process: search a seed's data, try settings, measure a cell."""

from __future__ import annotations

import os
import shlex
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peft_rag.benchmark.sources import expanded
from peft_rag.config import RunConfig, from_mapping
from peft_rag.refusals import SKIP

if TYPE_CHECKING:
    from torch import Tensor

    from peft_rag.corpus import Corpus
    from peft_rag.data import Splits
    from peft_rag.evaluation.bootstrap import Score
    from peft_rag.job import Answers, Prepared
    from peft_rag.tasks.base import Example, Task

NEAR = 0.95
ARMS = {"with_retrieval": "retrieved", "without_retrieval": "off"}

Facts = dict[str, Any]
_RETRIEVAL = ("retriever", "encoder", "corpus")


def try_settings(spec: Mapping[str, Any]) -> Facts:
    """Train with one choice of settings and score it on validation.

    Args:
        spec: ``settings`` of the run, without a test split.

    Returns:
        ``validation``: each score by name, and the ``loss`` in nats.
    """
    from peft_rag.devices import computing_for
    from peft_rag.job import prepare, refit_head, tune, with_tuned_neighbours

    config = _config(spec["settings"], Path("out"))
    with computing_for(config.training), tempfile.TemporaryDirectory() as folder:
        prepared = prepare(config, Path(folder), _say)
        report = tune(prepared, config, _say)
        prepared = with_tuned_neighbours(prepared)
        model, task = prepared.model, prepared.splits.task
        checked = model.outputs(prepared.validation)
        if config.head_refit:
            refit_head(prepared, checked, _say)
        examples = prepared.validation.examples
        log_probs, targets = model.judge(checked, prepared.validation).log_probs, task.targets(examples)
    scores = {
        name: score.value for name, score in task.evaluate(log_probs, targets, examples=examples, resamples=0).items()
    }
    return {
        "validation": scores | {"loss": float(task.loss(log_probs, targets))},
        "main_metric": task.main_metric,
        "train_seconds": report.seconds,
        "steps": report.steps,
    }


def search_data(spec: Mapping[str, Any]) -> Facts:
    """Index a seed's corpus, look for leaks, and find the neighbours that the cells of this seed will ask for.

    Args:
        spec: ``settings`` of a run without retrieval, and ``fusions``: the names that each fusion adds to them.

    Returns:
        ``audit``: positions of test examples whose text, or nearly, is training data or a document, of a corpus that a
        fusion names for itself too; ``index_bytes`` and ``index_seconds`` of the retriever's index, the encoding of the
        corpus included; ``own_indexes``: the same of each fusion that names a retriever, an encoder or a corpus of its
        own, else None.
    """
    from peft_rag.devices import computing_for
    from peft_rag.job import prepare, read_data, with_voters

    config = _config(spec["settings"], Path("out"))
    with computing_for(config.training):
        splits = read_data(config)
        if config.on_bad_record == SKIP:  # what the backbone cannot read is left out of every cell too
            with tempfile.TemporaryDirectory() as folder:
                splits = prepare(config, Path(folder), _say).splits
        facts = _index(config, splits)
        own: list[Facts | None] = []
        further: list[Corpus] = []
        for options in spec["fusions"]:
            with tempfile.TemporaryDirectory() as folder:
                asked = _config({**spec["settings"], **options}, Path(folder) / "out")
                prepared = with_voters(prepare(asked, Path(folder), _say))
            other = any(name.partition(".")[0] in _RETRIEVAL for name in options)
            own.append(_index(asked, prepared.splits) if other else None)
            if "corpus" in options:
                further.append(prepared.splits.corpus)
        return facts | _audit(config, splits, further) | {"own_indexes": own}


def measure_cell(spec: Mapping[str, Any]) -> Facts:
    """Run a cell's job once, with its controls and costs.

    Args:
        spec: ``settings`` of the run, ``controls`` wanted, ``seed``, and ``index`` bytes and seconds of the retriever.
    """
    from peft_rag.artefact_files import artefact_bytes
    from peft_rag.benchmark.controls import control_arms, control_texts
    from peft_rag.benchmark.costs import (
        latency,
        load_seconds,
        off_difference,
        peak_memory,
        tensor_bytes,
        tokens_per_second,
    )
    from peft_rag.generation import scored_part
    from peft_rag.job import run

    seen: Facts = {}
    costs: Facts = {}

    def observe(prepared: Prepared, answers: Answers) -> None:
        costs.update(peak_memory())
        model, examples = prepared.model, prepared.test.examples
        costs["tokens_per_second"] = tokens_per_second(model, prepared.test)
        assert answers.outputs is not None
        controls = control_arms(model, prepared.test, answers.outputs, spec["controls"], spec["seed"])
        written = scored_part(model.task, prepared.test)
        texts = control_texts(model, written, spec["controls"], spec["seed"]) if len(written) else {}
        costs["latency_ms"] = latency(model, examples)
        costs["off_difference"] = off_difference(model, [model.task.alone(example).asked for example in examples])
        costs.update(_index_costs(prepared, spec["index"]))
        seen["facts"] = described(prepared, answers, controls, texts)
        seen["fusion"], seen["gate"] = model.fusion.to_dict(), model.gates.get(model.adapter)

    with tempfile.TemporaryDirectory() as folder:
        artefact = Path(folder) / "artefact"
        result = run(_config(spec["settings"], artefact), _say, observe=observe)
        costs["tensor_bytes"], costs["load_seconds"] = tensor_bytes(artefact), load_seconds(artefact)
        costs["artefact_bytes"] = artefact_bytes(artefact)
    for name in ("trainable_parameters", "train_seconds", "examples_per_second", "steps"):
        costs[name] = result.metrics[name]
    if result.metrics["left_out"]:
        seen["facts"]["left_out"] = result.metrics["left_out"]
    return {**seen["facts"], "fusion_settings": seen["fusion"], "gate": seen["gate"], "costs": costs}


def described(
    prepared: Prepared,
    answers: Answers,
    controls: Mapping[str, Tensor],
    texts: Mapping[str, list[str]] | None = None,
) -> Facts:
    """Return what a cell file says of answers to the test split: of every arm, and of the controls.

    Args:
        prepared: the run's model and splits.
        answers: of the arms of a run.
        controls: log-probabilities by arm.
        texts: what was written for each control, where the task writes.
    """
    from peft_rag.measuring import scores_of

    task, examples, targets = prepared.splits.task, prepared.test.examples, answers.targets
    everything = replace(answers, log_probs={**answers.log_probs, **controls}, texts={**answers.texts, **(texts or {})})
    scored = scores_of(prepared, everything, resamples=0)
    arms = {
        ARMS.get(arm, arm): described_arm(task, log_probs, targets, examples, scored[arm])
        for arm, log_probs in everything.log_probs.items()
    }
    plain = {name for scores in scored.values() for name, score in scores.items() if not score.percent}
    return {
        "main_metric": task.main_metric,
        "statistic": task.statistic,
        "plain_scores": sorted(plain),
        "written": max(map(len, answers.texts.values()), default=0),
        "targets": plain_targets(task, targets, examples),
        "arms": arms,
    }


def described_arm(
    task: Task,
    log_probs: Tensor,
    targets: Tensor,
    examples: Sequence[Example] = (),
    scores: Mapping[str, Score] | None = None,
) -> Facts:
    """Return an arm as a cell file holds it.

    Args:
        task: judges it.
        log_probs: of the arm, in nats.
        targets: the right answers.
        examples: as for `Task.evaluate`.
        scores: where they are known already, or hold more than the task makes of the log-probabilities.

    Returns:
        ``scores``; ``tallies`` of each example, which the main metric is made of; and ``predictions``, the class or
        classes of each, where the task gives it such.
    """
    if scores is None:
        scores = task.evaluate(log_probs, targets, examples=examples, resamples=0)
    rows = task.tally(log_probs, targets, examples).tolist()
    tallies = [[int(one) if one == int(one) else one for one in row] for row in rows]
    facts: Facts = {"scores": {name: score.value for name, score in scores.items()}, "tallies": tallies}
    if targets.dim() == 1 or _has_several_labels(task):
        facts["predictions"] = plain_targets(task, log_probs.argmax(-1), examples)
    return facts


def plain_targets(task: Task, targets: Tensor, examples: Sequence[Example] = ()) -> list[Any]:
    """Turn targets into what JSON holds, one entry an example.

    That is the class as a whole number, a list of classes where an example has several labels or takes several
    decisions (of which it must be given), or else the target's own row.
    """
    from peft_rag.decisions import Decisions

    if _has_several_labels(task):
        return [[place for place, on in enumerate(row) if on] for row in targets.tolist()]
    if task.one_decision:
        return list(targets.tolist())
    classes, decisions = targets.reshape(len(targets), -1)[:, 0].tolist(), Decisions.on(task, examples)
    return [[classes[row] for row in decisions.rows(place)] for place in range(len(examples))]


def _has_several_labels(task: Task) -> bool:
    return bool(getattr(task, "multi_label", False))


def command_of(settings: Mapping[str, Any], output: str) -> str:
    """Write the command line that repeats a run; variables in paths are left for the shell.

    >>> command_of({"train": "${DATA}/a.jsonl", "method.r": 4, "head_refit": False}, "runs/a")
    'peft-rag train --train "${DATA}/a.jsonl" --method.r 4 --head_refit false --output runs/a'
    """
    words = [f"--{name} {_quoted(value)}" for name, value in settings.items() if value != ""]
    return " ".join(["peft-rag train", *words, f"--output {_quoted(output)}"])


def _quoted(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        value = ",".join(map(str, value))
    text = str(value).lower() if isinstance(value, bool) or value is None else str(value)
    return f'"{text}"' if "$" in text and not set('"`\\') & set(text) else shlex.quote(text)


def _config(settings: Mapping[str, Any], output: Path) -> RunConfig:
    return from_mapping({"disable_tqdm": True, **expanded(settings), "output": str(output)}, where="the suite")


def _audit(config: RunConfig, splits: Splits, further: Sequence[Corpus]) -> Facts:
    from peft_rag.corpus import Corpus, Document
    from peft_rag.knowledge import make_encoder
    from peft_rag.retrieval.exact import ExactRetriever
    from peft_rag.retrieval.neighbours import Query
    from peft_rag.retrieval.overlap import EXACT, find_overlap

    retriever = ExactRetriever(make_encoder(config.encoder))
    queries = [Query(example.id, splits.task.alone(example).asked) for example in splits.test]
    known = [splits.corpus, *further]
    if not splits.fields.is_training_data:
        learned = [Document(one.id, splits.task.alone(one).asked) for one in splits.train]
        known.append(Corpus.from_documents(learned, "training data"))
    masks: dict[str, set[int]] = {EXACT: set(), "any": set()}
    for corpus in known:
        report = find_overlap(queries, corpus, retriever, threshold=NEAR)
        masks[EXACT] |= set(report.mask(EXACT).nonzero()[0].tolist())
        masks["any"] |= set(report.mask().nonzero()[0].tolist())
    near = sorted(masks["any"] - masks[EXACT])
    return {"audit": {"threshold": NEAR, "exact": sorted(masks[EXACT]), "near": near}}


def _index(config: RunConfig, splits: Splits) -> Facts:
    from peft_rag.knowledge import make_retriever
    from peft_rag.places import cache_folder
    from peft_rag.retrieval.cache import keep_copy

    cache = cache_folder()
    with _empty_cache() as folder:
        retriever = make_retriever(config.retriever, config.encoder, config.part_options("retriever"), config.corpus)
        retriever.encoder_fingerprint()  # loads the encoder, which is no part of building an index
        begun = time.perf_counter()
        retriever.index(splits.corpus)
        seconds = time.perf_counter() - begun
        retriever.save(folder / "index")
        size = sum(path.stat().st_size for path in (folder / "index").rglob("*") if path.is_file())
        for kept in (folder / "embeddings").glob("[!.]*"):  # what was encoded to be timed need not be encoded again
            if kept.is_dir():
                keep_copy(kept, cache / "embeddings" / kept.name)
    return {"index_bytes": size, "index_seconds": seconds}


def _index_costs(prepared: Prepared, index: Mapping[str, Any]) -> Facts:
    """Return bytes and seconds of what the fusion searches in; nothing where it searches nothing."""
    from peft_rag.benchmark.costs import index_of_features

    if prepared.model.fusion.needs_features:
        return index_of_features(prepared.model)
    if prepared.model.effective_fusion.neighbours_wanted:
        return {name: index[name] for name in ("index_bytes", "index_seconds")}
    return {"index_bytes": 0, "index_seconds": 0.0}


@contextmanager
def _empty_cache() -> Iterator[Path]:
    """Let nothing that was kept before shorten what is measured within."""
    before = os.environ.get("PEFT_RAG_CACHE")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["PEFT_RAG_CACHE"] = folder
        try:
            yield Path(folder)
        finally:
            if before is None:
                del os.environ["PEFT_RAG_CACHE"]
            else:
                os.environ["PEFT_RAG_CACHE"] = before


def _say(line: str) -> None:
    print(line, flush=True)


WORK = {"cell": measure_cell, "trial": try_settings, "search": search_data}
"""What each kind of piece does."""
