"""The splits of one run and the corpus behind them, read and checked before anything heavy is loaded."""

from __future__ import annotations

import math
import random
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from peft_rag.corpus import Corpus
from peft_rag.errors import ConfigError, CorpusError, DataError
from peft_rag.refusals import ERROR, SKIP, LeftOut, sift
from peft_rag.tasks.base import Example, Task
from peft_rag.usable import read_given

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
        on_bad_record: whether records of the training data that cannot be used are left out of it (``skip``).
        left_out: ids of those among them that can be read, but do not fit into the backbone's window.
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
    on_bad_record: str = ERROR
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True)
class Splits:
    """Examples by split, the corpus, and what must be excluded when it is searched.

    Attributes:
        train, validation, test: the examples; ``test`` is empty where none was given.
        task: the task, knowing the labels of ``train``.
        corpus: what is retrieved from; None where no fusion needs it.
        fields: how the corpus is read again.
        validation_in_corpus: whether the validation examples are themselves documents.
        left_out: the records of each split that are not used; of examples held out for validation, those of ``train``
            that could not be read are among these.
    """

    train: list[Example]
    validation: list[Example]
    test: list[Example]
    task: Task
    corpus: Corpus
    fields: CorpusFields
    validation_in_corpus: bool
    left_out: Mapping[str, LeftOut] = field(default_factory=dict)


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
    on_bad_record: str = ERROR,
) -> Splits:
    """Read every split of a run.

    Without ``validation``, a share of the training examples is held out, stratified by label. Without ``corpus``, the
    training data is the corpus, the held-out examples among it: each of them never retrieves itself. With
    ``label_documents`` the name of each label is one more training example of it, and a document.

    With ``on_bad_record`` of ``skip``, records that cannot be used are left out. One of the training data is then no
    document either; the documents of a corpus of its own must all be usable, whatever is said here.

    Raises:
        ConfigError: label names are asked for as documents of another corpus, or of a task whose texts bear no label.
        DataError: a record cannot be used, a split is empty, or a label is unseen in training.
        CorpusError: a document cannot be used.
    """
    skip = on_bad_record == SKIP
    learned_from = _training_fields(task, train, shots, seed, on_bad_record)
    fields = replace(corpus_fields or CorpusFields(corpus), source=corpus) if corpus else learned_from
    given, train_left_out = _read_training(task, learned_from, is_corpus=not corpus)
    kept, held = (given, []) if validation else hold_out(given, validation_share, seed, task.stratum)
    learned = task.with_labels_of(given)
    if label_documents:
        _check_named(task, corpus)
        named = label_examples(given)
        kept, given = [*kept, *named], [*given, *named]
        fields = replace(fields, label_documents=True)
    checked, checked_left_out = _read_others(learned, validation, skip=skip)
    tested, tested_left_out = _read_others(learned, test, skip=skip)
    if not validation:
        checked, checked_left_out = held, LeftOut(len(held))
    learned.targets(checked)
    learned.targets(tested)
    documents = read_corpus(fields, task) if corpus else _documents(given, task, Path(train).name)
    left_out = {"train": train_left_out, "validation": checked_left_out, "test": tested_left_out}
    return Splits(kept, checked, tested, learned, documents, fields, not corpus and not validation, left_out)


def read_corpus(fields: CorpusFields, task: Task) -> Corpus:
    """Read a corpus again, exactly as it was read for training."""
    if fields.is_training_data:
        given, _ = _read_training(task, fields)
        named = label_examples(given) if fields.label_documents else []
        kept = [one for one in [*given, *named] if one.id not in set(fields.left_out)]
        return _documents(kept, task, Path(fields.source).name)
    return Corpus.read(
        fields.source,
        text_field=fields.text_field,
        label_field=fields.label_field,
        id_field=fields.id_field,
        group_field=fields.group_field,
    )


def without(splits: Splits, use: Callable[[Sequence[Example]], object]) -> Splits:
    """Leave out the examples that the backbone cannot read, and their documents where these are the training data.

    Args:
        splits: whose records were read.
        use: raises `DataError` where one of the examples it is given cannot be used.

    Raises:
        DataError: nothing is left of a split.
    """
    kept: dict[str, list[Example]] = {}
    left_out = dict(splits.left_out)
    gone: set[str] = set()
    for name in ("train", "validation", "test"):
        kept[name], refused = sift(getattr(splits, name), use)
        left_out[name] = left_out[name].and_these([str(error) for _, error in refused])
        left_out[name].check(name, len(kept[name]))
        if name == "train" or (name == "validation" and splits.validation_in_corpus):
            gone |= {example.id for example, _ in refused}
    fields, corpus = splits.fields, splits.corpus
    if fields.is_training_data and gone:
        fields = replace(fields, left_out=tuple(document.id for document in corpus if document.id in gone))
        corpus = Corpus.from_documents([one for one in corpus if one.id not in gone], corpus.name)
    return replace(
        splits,
        train=kept["train"],
        validation=kept["validation"],
        test=kept["test"],
        corpus=corpus,
        fields=fields,
        left_out=left_out,
    )


def _training_fields(task: Task, source: str, shots: int, seed: int, on_bad_record: str) -> CorpusFields:
    """Return how the training data is read, as the corpus too."""
    names = {name: getattr(task, name) for name in ("text_field", "label_field", "id_field") if hasattr(task, name)}
    return CorpusFields(source, is_training_data=True, shots=shots, seed=seed, on_bad_record=on_bad_record, **names)


def _read_training(task: Task, fields: CorpusFields, *, is_corpus: bool = True) -> tuple[list[Example], LeftOut]:
    """Read the training data; where it is the corpus and bad records are skipped, an id that is taken is one too."""
    skip = fields.on_bad_record == SKIP
    usable = read_given(fields.source, skip=skip).read(task)
    given, left_out = usable.examples, usable.left_out
    if skip and is_corpus:
        given, taken = _own_ids(given)
        left_out = left_out.and_these(taken)
    if fields.shots:
        given = sample_shots(given, fields.shots, fields.seed, task.stratum)
    return given, left_out


def _read_others(task: Task, source: str, *, skip: bool) -> tuple[list[Example], LeftOut]:
    """Read validation or test data; none where there is no source."""
    if not source:
        return [], LeftOut(0)
    usable = read_given(source, skip=skip).read(task)
    if skip:
        usable = usable.that(task.targets)
        usable.check(Path(source).name)
    return usable.examples, usable.left_out


def _own_ids(examples: Sequence[Example]) -> tuple[list[Example], list[str]]:
    """Return the first example of each id, and why the others are refused."""
    first: dict[str, Example] = {}
    taken = [str(_taken(one, first[one.id].where)) for one in examples if first.setdefault(one.id, one) is not one]
    return list(first.values()), taken


def _taken(example: Example, where: str) -> CorpusError:
    return CorpusError(
        f"{example.where}: id '{example.id}' was given already at {where}. Give each record an id of its own, or name "
        "another field with --id_field."
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

    What the classes before it were too small to give a class makes up for by one example, and by no more. Where
    classes are sets of labels, those of one example are one class, of which each label keeps an example.

    Raises:
        DataError: nothing can be held out.
    """
    held: set[int] = set()
    owed = 0.0
    strata = _places(examples, stratum)
    alone = [strata.pop(label)[0] for label in sorted(strata) if len(label) > 1 and len(strata[label]) == 1]
    for label, places in sorted(strata.items()):
        owed += share * len(places)
        count = min(round(owed), len(places) - 1, math.ceil(share * len(places)) + 1)
        held.update(random.Random(f"{seed} {label}").sample(places, max(count, 0)))
        owed = min(owed - count, 1.0)
    held.update(_dispensable(examples, alone, round(share * len(alone)), held, stratum, seed))
    if not held:
        raise DataError(
            f"{len(examples)} training examples are too few to hold out a share of {share} for validation. "
            "Name a validation file with --validation."
        )
    kept = [example for place, example in enumerate(examples) if place not in held]
    return kept, [examples[place] for place in sorted(held)]


def _dispensable(
    examples: Sequence[Example], places: Sequence[int], count: int, held: Collection[int], stratum: Stratum, seed: int
) -> list[int]:
    """Draw ``count`` places at most, so that of every label there is still an example that is not held out."""
    left = Counter(label for place, one in enumerate(examples) if place not in held for label in set(stratum(one)))
    drawn: list[int] = []
    for place in random.Random(f"{seed} alone").sample(places, len(places)):
        labels = set(stratum(examples[place]))
        if len(drawn) < count and all(left[label] > 1 for label in labels):
            left.subtract(labels)
            drawn.append(place)
    return drawn


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
            raise _taken(example, lines[example.id])
        lines[example.id] = example.where
    return Corpus.from_documents(list(map(task.document_of, examples)), name)


def as_fields(stored: dict[str, Any]) -> CorpusFields:
    """Read corpus fields back from an artefact; anything else stored beside them is left alone."""
    known = {name: stored[name] for name in CorpusFields.__dataclass_fields__ if name in stored}
    return CorpusFields(**known | {"left_out": tuple(known.get("left_out", ()))})
