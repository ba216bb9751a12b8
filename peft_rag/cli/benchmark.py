"""``peft-rag benchmark``: methods side by side on the same data, with the same budget."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peft_rag.cli.flags import refuse

if TYPE_CHECKING:
    from peft_rag.benchmark.plan import Plan

_FLAGS = ("--output", "--dry-run", "--only", "--redo", "--jobs", "--require-data", "--no-report")
_EPILOG = """\
A suite is a YAML file:

  name: mine
  data:
    tickets: {train: train.jsonl, test: test.jsonl, shots: [10], options: {max_length: 96}}
  methods: [head, lora, {name: lora, label: lora-wide, options: {method.r: 32}}]
  fusions: [none, knn]
  seeds: [0, 1, 2]
  budget: {max_steps: 100, trials: 4}
  reference: {method: head, fusion: none}

Every cell (data set, shots, backbone, method, fusion, seed) is a run of peft-rag train in a process of its own, with as
many steps and as many trials on validation for every method. Under `options` stands any name of a run file. Paths may
hold $VARIABLES; a data set that is absent is left out and said to be. Each cell leaves one JSON file as it ends; the
same command goes on where it was stopped, and refuses results that another suite or other code has made.

  peft-rag benchmark examples/benchmark-demo.yaml --dry-run          cells, trials, and how long they take
  peft-rag benchmark examples/benchmark-demo.yaml                    run, then tables and page
  peft-rag benchmark suite.yaml --only method=lora,dataset=tickets   some cells only
"""


def add_to(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "benchmark",
        help="compare methods and fusions on the same data with the same budget",
        description="Run every cell of a suite, and report what they say together.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("suite", metavar="SUITE.yaml", help="what to compare")
    parser.add_argument("--output", default="benchmarks/results", help="folder of the results (%(default)s)")
    parser.add_argument("--dry-run", "--dry_run", action="store_true", help="list cells and trials, estimate the time")
    parser.add_argument(
        "--only", action="append", default=[], metavar="NAME=VALUE,…", help="dataset, shots, backbone, method, …"
    )
    parser.add_argument("--redo", action="store_true", help="run again what is stale, failed or diverged")
    parser.add_argument("--jobs", type=int, default=1, help="processes at once (%(default)s)")
    parser.add_argument("--require-data", "--require_data", action="store_true", help="an absent data set is an error")
    parser.add_argument("--no-report", "--no_report", action="store_true", help="leave the report as it is")
    parser.set_defaults(run=_run)


def _run(known: argparse.Namespace, rest: Sequence[str]) -> None:
    from peft_rag.benchmark.filters import read_filter
    from peft_rag.benchmark.plan import make_plan
    from peft_rag.benchmark.suite import read_suite
    from peft_rag.cli.progress import hold_back_chatter, say
    from peft_rag.errors import ConfigError

    refuse(rest, _FLAGS)
    if known.jobs < 1:
        raise ConfigError(f"--jobs is {known.jobs}; it must be at least 1.")
    hold_back_chatter()
    suite = read_suite(known.suite)
    plan = make_plan(suite, read_filter(",".join(known.only)), require_data=known.require_data)
    folder = Path(known.output) / suite.name
    if known.dry_run:
        _dry_run(plan, folder, redo=known.redo)
        return

    from peft_rag.benchmark.pieces import open_pieces
    from peft_rag.benchmark.runner import keep_suite, run_plan

    open_pieces(plan, folder, redo=known.redo)  # refuses what no longer counts, before the suite beside it changes
    keep_suite(Path(known.suite), folder)
    run_plan(plan, folder, say, jobs=known.jobs, redo=known.redo)
    if not known.no_report:
        from peft_rag.benchmark.report import write

        write(folder, say)


def _dry_run(plan: Plan, folder: Path, *, redo: bool) -> None:
    from peft_rag.benchmark.estimate import estimate
    from peft_rag.benchmark.pieces import open_pieces
    from peft_rag.benchmark.progress import in_words

    todo = open_pieces(plan, folder, redo=redo)
    for name, why in plan.skipped.items():
        print(f"left out: data set '{name}', because {why}")
    for cell in plan.cells:
        state = "to run" if any(piece.name == cell.name for piece in todo) else "done"
        also = f" (its arm without retrieval is the row {', '.join(cell.covers)})" if cell.covers else ""
        print(f"{state.ljust(7)} {cell.name}{also}")
    studies = {cell.study.name: cell.study for cell in plan.cells}
    for name, study in studies.items():
        for number, point in enumerate(study.points, start=1):
            print(f"trial   {name} {number}: {', '.join(f'{key} {value}' for key, value in point.items())}")
    trials = sum(piece.kind == "trial" for piece in todo)
    cells = sum(piece.kind == "cell" for piece in todo)
    if not todo:
        print("nothing is left to run")
        return
    print(f"{cells} cells and {trials} trials to run, about {in_words(estimate(todo))} on this machine, one at a time")
