"""The splits of one run and the corpus behind them, read and checked before anything heavy is loaded."""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from peft_rag.corpus import Corpus
from peft_rag.errors import ConfigError, CorpusError, DataError
from peft_rag.records import read_records
from peft_rag.tasks.base import Example, Task

Stratum = Callable[[Example], tuple[str, ...]]
"""What an example is drawn by (`peft_rag.tasks.base.Task.stratum`)."""


@dataclass(frozen=True)
class CorpusFields:
    """Where a corpus comes from, so that an artefact can read it again.

    Attributes:
        source: file, folder, demo or hub name.
        is_training_data: whether it is the training data, read as the task reads it.
        text_field, label_field, id_field, group_field: names of the fields; the task knows them for training data.
        shots: examples per class that were drawn; 0 for all.
        seed: of that draw.
        label_documents: whether the name of each label is a document of that label besides.
    """

    source: str
    is_training_data: bool = False
    text_field: str = "text"
    label_field: str = "label"
    id_field: str = "id"
    group_field: str = ""
    shots: int = 0
    seed: int = 0
    label_documents: bool = False


@dataclass(frozen=True)
class Splits:
    """Examples by split, the corpus, and what must be excluded when it is searched.

    Attributes:
        train, validation, test: the examples; ``test`` is empty where none was given.
        task: the task, knowing the labels of ``train``.
        corpus: what is retrieved from; None where no fusion needs it.
        fields: how the corpus is read again.
        validation_in_corpus: whether the validation examples are themselves documents.
    """

    train: list[Example]
    validation: list[Example]
    test: list[Example]
    task: Task
    corpus: Corpus
    fields: CorpusFields
    validation_in_corpus: bool


def read_splits(
    task: Task,
    *,
    train: str,
    validation: str = "",
    test: str = "",
    corpus: str = "",
    corpus_fields: CorpusFields | None = None,
    validation_share: float = 0.1,
    shots: int = 0,
    seed: int = 0,
    label_documents: bool = False,
) -> Splits:
    """Read every split of a run.

    Without ``validation``, a share of the training examples is held out, stratified by label. Without ``corpus``, the
    training data is the corpus, the held-out examples among it: each of them never retrieves itself. With
    ``label_documents`` the name of each label is one more training example of it, and a document.

    Raises:
        ConfigError: label names are asked for as documents of another corpus, or of a task whose texts bear no label.
        DataError: a record cannot be used, a split is empty, or a label is unseen in training.
        CorpusError: a document cannot be used.
    """
    given = task.read(read_records(train))
    if shots:
        given = sample_shots(given, shots, seed, task.stratum)
    kept, held = (given, []) if validation else hold_out(given, validation_share, seed, task.stratum)
    learned = task.with_labels_of(given)
    if label_documents:
        _check_named(task, corpus)
        named = label_examples(given)
        kept, given = [*kept, *named], [*given, *named]
    checked = task.read(read_records(validation)) if validation else held
    tested = task.read(read_records(test)) if test else []
    for split in (checked, tested):
        learned.targets(split)
    if corpus:
        fields = replace(corpus_fields or CorpusFields(corpus), source=corpus)
    else:
        names = {name: getattr(task, name) for name in ("text_field", "label_field", "id_field") if hasattr(task, name)}
        fields = CorpusFields(
            train, is_training_data=True, shots=shots, seed=seed, label_documents=label_documents, **names
        )
    documents = read_corpus(fields, task) if corpus else _documents(given, task, Path(train).name)
    return Splits(kept, checked, tested, learned, documents, fields, not corpus and not validation)


def read_corpus(fields: CorpusFields, task: Task) -> Corpus:
    """Read a corpus again, exactly as it was read for training."""
    if fields.is_training_data:
        examples = task.read(read_records(fields.source))
        drawn = sample_shots(examples, fields.shots, fields.seed, task.stratum) if fields.shots else examples
        named = label_examples(drawn) if fields.label_documents else []
        return _documents([*drawn, *named], task, Path(fields.source).name)
    return Corpus.read(
        fields.source,
        text_field=fields.text_field,
        label_field=fields.label_field,
        id_field=fields.id_field,
        group_field=fields.group_field,
    )


def sample_shots(
    examples: Sequence[Example], shots: int, seed: int, stratum: Stratum = lambda one: one.labels or ()
) -> list[Example]:
    """Draw ``shots`` examples per class without replacement, in the order of the data.

    Raises:
        DataError: a class has fewer.
    """
    chosen: set[int] = set()
    for label, places in sorted(_places(examples, stratum).items()):
        if len(places) < shots:
            raise DataError(
                f"--shots {shots} asks for {shots} examples of each class, but label '{', '.join(label)}' has "
                f"{len(places)}. Lower --shots."
            )
        chosen.update(random.Random(f"{seed} {label}").sample(places, shots))
    return [example for place, example in enumerate(examples) if place in chosen]


def hold_out(
    examples: Sequence[Example], share: float, seed: int, stratum: Stratum = lambda one: one.labels or ()
) -> tuple[list[Example], list[Example]]:
    """Split examples into those kept and a share held out, stratified by label; a class keeps one example at least.

    Raises:
        DataError: nothing can be held out.
    """
    held: set[int] = set()
    owed = 0.0
    for label, places in sorted(_places(examples, stratum).items()):
        owed += share * len(places)
        count = min(round(owed), len(places) - 1)
        held.update(random.Random(f"{seed} {label}").sample(places, max(count, 0)))
        owed -= count
    if not held:
        raise DataError(
            f"{len(examples)} training examples are too few to hold out a share of {share} for validation. "
            "Name a validation file with --validation."
        )
    kept = [example for place, example in enumerate(examples) if place not in held]
    return kept, [examples[place] for place in sorted(held)]


def label_examples(examples: Sequence[Example]) -> list[Example]:
    """Return the name of each label as an example of it: ``card_arrival`` is the text "card arrival"."""
    labels = sorted({label for example in examples for label in example.labels or ()})
    texts = {label: " ".join(re.split(r"[\s_-]+", label)).strip() or label for label in labels}
    return [Example(f"label:{label}", texts[label], (label,), f"name of label '{label}'") for label in labels]


def _check_named(task: Task, corpus: str) -> None:
    if not (task.one_decision and task.votes) or task.pools_spans:
        raise ConfigError(
            "label_documents makes a text of each label's name, but this task does not give labels to whole texts. "
            "Leave it out."
        )
    if corpus:
        raise ConfigError(
            f"label_documents adds the names of labels to the training data, but the corpus is '{corpus}'. Leave "
            "--corpus out, or write them into it."
        )


def _places(examples: Sequence[Example], stratum: Stratum) -> dict[tuple[str, ...], list[int]]:
    places: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for place, example in enumerate(examples):
        places[stratum(example)].append(place)
    return places


def _documents(examples: Sequence[Example], task: Task, name: str) -> Corpus:
    """Make the training examples a corpus."""
    lines: dict[str, str] = {}
    for example in examples:
        if example.id in lines:
            raise CorpusError(
                f"{example.where}: id '{example.id}' was given already at {lines[example.id]}. Give each record an id "
                "of its own, or name another field with --id_field."
            )
        lines[example.id] = example.where
    return Corpus.from_documents(list(map(task.document_of, examples)), name)


def as_fields(stored: dict[str, Any]) -> CorpusFields:
    """Read corpus fields back from an artefact; anything else stored beside them is left alone."""
    known = {name: stored[name] for name in CorpusFields.__dataclass_fields__ if name in stored}
    return CorpusFields(**known)
