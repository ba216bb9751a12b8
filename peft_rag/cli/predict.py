"""``peft-rag predict``: predictions of a saved artefact, with the neighbours behind them."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peft_rag.cli.flags import flags_of, refuse
from peft_rag.cli.writing import add_writing_options, check_writes, decoding_of, stream
from peft_rag.refusals import ERROR, ON_BAD_RECORD, SKIP

if TYPE_CHECKING:
    from peft_rag.explanation.telling import Telling
    from peft_rag.model import RetrievalAugmentedModel
    from peft_rag.prediction import Prediction
    from peft_rag.tasks.base import Example, Task
    from peft_rag.usable import Given, Usable


def add_artefact_options(parser: argparse.ArgumentParser) -> None:
    """Add the flags of every command that loads an artefact."""
    parser.add_argument("artefact", help="folder that peft-rag train made, or a hub id")
    parser.add_argument("--corpus", help="where the corpus lies now, if not where it lay in training")
    parser.add_argument("--backbone", help="where the backbone lies now, if not as it was named in training")
    parser.add_argument("--encoder", help="where the sentence encoder lies now, if not as it was named in training")
    parser.add_argument(
        "--allow-backbone-mismatch",
        "--allow_backbone_mismatch",
        action="store_true",
        help="load on another backbone all the same",
    )
    parser.add_argument(
        "--allow-corpus-mismatch",
        "--allow_corpus_mismatch",
        action="store_true",
        help="retrieve from another corpus all the same",
    )
    parser.add_argument("--text-field", "--text_field", help="field that holds the text, if not as in training")
    parser.add_argument("--batch-size", "--batch_size", type=int, default=64, help="texts run at once (64)")
    parser.add_argument(
        "--device", help="what to compute on, models and search: cuda, cuda:1, cpu, … (an accelerator, if there is one)"
    )
    parser.add_argument(
        "--on-bad-record",
        "--on_bad_record",
        choices=ON_BAD_RECORD,
        default=ERROR,
        help="a record that cannot be used is an error, or with skip left out, counted and reported; predict then "
        "writes a line with its error in place of its prediction (error)",
    )


def load_artefact(known: argparse.Namespace) -> RetrievalAugmentedModel:
    """Load the artefact that the flags name onto the device they name."""
    from peft_rag.artefact import load, locate
    from peft_rag.artefact_files import read_manifest
    from peft_rag.cli.progress import hold_back_chatter
    from peft_rag.devices import chosen_device
    from peft_rag.errors import ConfigError

    if known.batch_size < 1:
        raise ConfigError(f"--batch-size is {known.batch_size}; it must be at least 1.")
    hold_back_chatter()
    read_manifest(locate(known.artefact))
    model = load(
        known.artefact,
        corpus=known.corpus,
        backbone=known.backbone,
        encoder=known.encoder,
        allow_backbone_mismatch=known.allow_backbone_mismatch,
        allow_corpus_mismatch=known.allow_corpus_mismatch,
    )
    model.to(chosen_device())
    return model


def given_fields(known: argparse.Namespace) -> dict[str, str]:
    """Return the field names that flags gave."""
    names = ("text_field", "label_field")
    return {name: value for name in names if (value := getattr(known, name, None))}


def task_of(model: RetrievalAugmentedModel, known: argparse.Namespace) -> Task:
    """Return the artefact's task, reading the fields that flags name."""
    from peft_rag.parts import make_part

    task: Task = make_part(type(model.task), "task", model.task.to_dict() | given_fields(known))
    return task.with_tokenizer(model.tokenizer)


def read_for(model: RetrievalAugmentedModel, task: Task, given: Given, *, labelled: bool) -> Usable:
    """Read what a model is asked, without what cannot be used where that is skipped."""
    usable = given.read(task, labelled=labelled)
    if given.skip and labelled:
        usable = usable.that(task.targets)
    return _readable(model, usable, given.name, skip=given.skip)


def _typed(model: RetrievalAugmentedModel, task: Task, *, skip: bool) -> Usable:
    """Read the texts that were typed, a line each; blank ones are none."""
    from peft_rag.errors import DataError
    from peft_rag.text_files import decoded_lines
    from peft_rag.usable import Usable

    examples: list[Example] = []
    lines: list[int] = []
    refused: list[tuple[int, str]] = []

    def refuse_line(number: int, error: DataError) -> None:
        if not skip:
            raise error
        refused.append((number, str(error)))

    for number, line in enumerate(decoded_lines(sys.stdin.buffer, Path("standard input"), refuse_line), start=1):
        if line.strip():
            try:
                examples.append(task.as_example(line.rstrip("\n"), str(number)))
                lines.append(number)
            except DataError as error:
                refuse_line(number, error)
    return _readable(model, Usable(examples, lines, refused), "standard input", skip=skip)


def _readable(model: RetrievalAugmentedModel, usable: Usable, name: str, *, skip: bool) -> Usable:
    from peft_rag.encoding import check_readable

    if skip:
        usable = usable.that(lambda examples: check_readable(model, examples))
    usable.check(name)
    return usable


def _in_place(usable: Usable, answers: Sequence[Any], instead: Callable[[str], Any]) -> list[Any]:
    """Return answers in the order of the records, and for those that were refused what stands in their place."""
    given = [*zip(usable.lines, answers, strict=True), *((line, instead(reason)) for line, reason in usable.refused)]
    return [answer for _, answer in sorted(given, key=lambda pair: pair[0])]


def add_to(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "predict",
        help="predict with a saved artefact",
        description="Predict the labels of the texts in a file, one JSON line each, on standard output or into a file.",
        allow_abbrev=False,
    )
    add_artefact_options(parser)
    parser.add_argument(
        "data", help="texts: .jsonl, .csv, .tsv, .parquet; '-' reads one text a line from standard input"
    )
    parser.add_argument(
        "--explain",
        action="store_true",
        help="show each prediction's neighbours with scores, weights and effects: how much less likely, in nats, the "
        "prediction is with that one left out; a model that reads K neighbours answers K + 1 more times for this",
    )
    parser.add_argument(
        "--html", help="write the explanations here too, as one page for any reader; needs --explain, must not exist"
    )
    parser.add_argument("--output", help="write JSON Lines here instead; the file must not exist")
    add_writing_options(parser)
    parser.set_defaults(run=_run, flags=flags_of(parser))


def _run(known: argparse.Namespace, rest: Sequence[str]) -> None:
    from transformers import set_seed

    from peft_rag.cli.progress import write_result_text
    from peft_rag.explanation.telling import Telling
    from peft_rag.usable import read_given

    rest, decoding = decoding_of(rest)
    refuse(rest, known.flags)
    _check_files(known)
    skip = known.on_bad_record == SKIP
    given = None if known.data == "-" else read_given(known.data, skip=skip)
    model = load_artefact(known)
    check_writes(model, known, decoding)
    task = task_of(model, known)
    usable = read_for(model, task, given, labelled=False) if given else _typed(model, task, skip=skip)
    for line in usable.left_out.lines(known.data):
        print(line, file=sys.stderr)
    examples = usable.examples
    if known.seed is not None:
        set_seed(known.seed)
    if known.stream:
        stream(model, _in_place(usable, examples, lambda reason: f"error: {reason}"), decoding)
        return
    answers = model.predict(
        examples, explain=known.explain, batch_size=known.batch_size, progress="predicting", decoding=decoding
    )
    written = [_line(task, example, answer, known.explain) for example, answer in zip(examples, answers, strict=True)]
    lines = [
        json.dumps(line, ensure_ascii=False) for line in _in_place(usable, written, lambda reason: {"error": reason})
    ]
    if known.html:
        telling = Telling(task, model.fusion.reads_neighbours)
        write_result_text("--html", known.html, _page(examples, answers, known, telling))
    if known.output:
        write_result_text("--output", known.output, "".join(f"{line}\n" for line in lines))
    else:
        for line in lines:
            print(line)


def _check_files(known: argparse.Namespace) -> None:
    """Refuse files that cannot be meant before anything is loaded."""
    from peft_rag.errors import ArtefactError, ConfigError

    if known.seed is not None and not 0 <= known.seed < 1 << 32:
        raise ConfigError(f"--seed is {known.seed}; it must be from 0 to 2^32 - 1.")
    if known.html and not known.explain:
        raise ConfigError("--html writes explanations. Add --explain.")
    if known.explain and known.stream:
        raise ConfigError(
            "--stream shows a text while it is written, --explain asks about it afterwards. Leave one out."
        )
    if known.output and known.stream:
        raise ConfigError("--stream writes to standard output while the model writes. Leave --output or --stream out.")
    if known.html and known.output and Path(known.html).resolve() == Path(known.output).resolve():
        raise ConfigError(f"--html and --output both name '{known.html}'. Name two files.")
    for flag, name in (("--output", known.output), ("--html", known.html)):
        if name and Path(name).exists():
            raise ArtefactError(f"'{name}' exists already. Name another file with {flag}.")


def _page(
    examples: Sequence[Example], answers: Sequence[Prediction], known: argparse.Namespace, telling: Telling
) -> str:
    from peft_rag.explanation.page import About, page

    data = "standard input" if known.data == "-" else Path(known.data).name
    return page(examples, answers, About(Path(known.artefact).resolve().name, data), telling)


def _line(task: Task, example: Example, answer: Prediction, explain: bool) -> dict[str, Any]:
    line: dict[str, Any] = {"text": example.text.strip() if task.opens else example.text}
    example = answer.read or example
    line |= _said(task, example, answer)
    if explain:
        alone = answer.without_retrieval
        line["without_retrieval"] = _said(task, example, alone) if alone else None
        line["neighbours"] = [
            {
                "id": one.id,
                "score": round(one.score, 4),
                "weight": round(one.weight, 4),
                "effect": round(one.effect, 4) + 0.0,
                **_without(task, example, one.labels_without),
                "labels": list(one.labels),
                "text": one.text,
            }
            for one in answer.neighbours
        ]
    return line


def _without(task: Task, example: Example, labels: tuple[str, ...] | None) -> dict[str, Any]:
    """Write what would be predicted with a neighbour left out, where that was asked."""
    if labels is None:
        return {}
    return {f"{name}_without": value for name, value in task.answer(example, labels).items()}


def _said(task: Task, example: Example, answer: Prediction) -> dict[str, Any]:
    return {**task.answer(example, answer.labels), "probability": round(answer.probability, 4)}
