"""``peft-rag evaluate``: scores of a saved artefact on labelled data."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from peft_rag.cli.flags import flags_of, refuse
from peft_rag.cli.predict import add_artefact_options, load_artefact, read_for, task_of


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
    parser.set_defaults(run=_run, flags=flags_of(parser))


def _run(known: argparse.Namespace, rest: Sequence[str]) -> None:
    from peft_rag.cli.progress import write_result
    from peft_rag.evaluation.bootstrap import in_percent
    from peft_rag.evaluation.overlap import overlap_lines, scores_by_overlap
    from peft_rag.generation import written_scores
    from peft_rag.refusals import SKIP
    from peft_rag.usable import read_given

    refuse(rest, known.flags)
    given = read_given(known.data, skip=known.on_bad_record == SKIP)
    model = load_artefact(known)
    task = task_of(model, known)
    usable = read_for(model, task, given, labelled=True)
    split = model.split_to_measure(usable.examples)
    examples = split.examples
    targets = task.targets(examples)
    answered = model.answer(split, batch_size=known.batch_size, progress="evaluating")
    scores = task.evaluate(answered, targets, examples=examples)
    scores |= written_scores(model, split, batch_size=known.batch_size, progress="writing")
    for line in usable.left_out.lines(known.data):
        print(line)
    scale = in_percent(name for name, score in scores.items() if not score.percent)
    print(f"{scale} on {len(examples):,} examples of {known.data}, 95% bootstrap intervals in brackets")
    for name, score in scores.items():
        print(f"{name.ljust(max(map(len, scores)) + 2)}{score}")
    written: dict[str, Any] = {name: score.to_dict() for name, score in scores.items()}
    if usable.refused:
        written["left_out"] = usable.left_out.to_dict()
    if model.knowledge is not None:
        report = model.knowledge.overlap([task.alone(example) for example in examples])
        overlap = scores_by_overlap(task, {"shipped": answered}, targets, report, examples)
        for line in overlap_lines(overlap):
            print(line)
        written["overlap"] = overlap
    if known.output:
        write_result(known.output, written)
