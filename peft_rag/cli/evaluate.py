"""``peft-rag evaluate``: scores of a saved artefact on labelled data."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from peft_rag.cli.flags import refuse
from peft_rag.cli.predict import add_artefact_options, given_fields, load_artefact


def add_to(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "evaluate",
        help="score a saved artefact on labelled data",
        description="Score an artefact on labelled data, with 95% bootstrap intervals.",
        allow_abbrev=False,
    )
    add_artefact_options(parser)
    parser.add_argument(
        "--data", required=True, help="labelled data: .jsonl, .csv, .tsv, .parquet, demo:NAME/SPLIT or hub id"
    )
    parser.add_argument("--label-field", "--label_field", help="field that holds the label, if not as in training")
    parser.add_argument("--output", help="write the scores here as JSON too")
    parser.set_defaults(run=_run)


def _run(known: argparse.Namespace, rest: Sequence[str]) -> None:
    from peft_rag.cli.progress import write_result
    from peft_rag.evaluation.overlap import overlap_lines, scores_by_overlap
    from peft_rag.parts import make_part
    from peft_rag.records import read_records

    refuse(
        rest,
        ["--data", "--corpus", "--backbone", "--text-field", "--label-field", "--output", "--batch-size"],
    )
    records = read_records(known.data)
    model = load_artefact(known)
    task = make_part(type(model.task), "task", model.task.to_dict() | given_fields(known))
    task = task.with_tokenizer(model.tokenizer)
    examples = task.read(records)
    targets = task.targets(examples)
    given = model.answer(examples, batch_size=known.batch_size, progress="evaluating")
    scores = task.evaluate(given, targets, examples=examples)
    print(f"in percent on {len(records):,} examples of {known.data}, 95% bootstrap intervals in brackets")
    for name, score in scores.items():
        print(f"{name.ljust(max(map(len, scores)) + 2)}{score}")
    written = {name: score.to_dict() for name, score in scores.items()}
    if model.knowledge is not None:
        report = model.knowledge.overlap(examples)
        overlap = scores_by_overlap(task, {"shipped": given}, targets, report, examples)
        for line in overlap_lines(overlap):
            print(line)
        written["overlap"] = overlap
    if known.output:
        write_result(known.output, written)
