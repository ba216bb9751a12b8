"""``peft-rag recommend``: which method for this data, and the artefact it makes."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from peft_rag.cli.flags import read_flags
from peft_rag.cli.train import add_run_options, common_training_options, valued_names
from peft_rag.config import QUERY_TOWER

_EPILOG = """\
The search is successive halving: every candidate (a method with a learning rate and a size) is trained for a few steps,
the better third goes on with three times as many, and so on, judged by validation alone. Of the finalists the best is
taken, or a smaller one that validation cannot tell from it; the same holds for retrieval. The winner is then trained
once more as an ordinary run, and answers the test split, which nothing before it has done.

  peft-rag recommend --train train.jsonl --test test.jsonl --output runs/mine
  peft-rag recommend --train train.jsonl --output runs/mine --budget-minutes 10 --budget-bytes 500k
  peft-rag recommend --train train.jsonl --output runs/mine --methods head,lora,dora,full --fusions none,knn,concat
  peft-rag recommend --train train.jsonl --output runs/mine --resume        go on where it was stopped

Beside the artefact's own files the output holds recommendation.md, the reasons in words with a table of all candidates,
and recommendation.json, the same for programs. Data and training are described as for peft-rag train, in flags or a run
file (whose method and fusion give way to the search). Every run takes the same options, among them any name of
transformers.TrainingArguments; a learning_rate that is given is not searched. Without --max_steps or --num_train_epochs
the final run takes three passes over the data, 120 steps at least.

common training options:
"""
_OWN = (
    ("methods", "A,B,C", "PEFT methods to choose from, any that peft-rag methods lists ({methods})"),
    ("fusions", "A,B", "fusions to choose from; those that train alike share their trainings ({fusions})"),
    ("budget-bytes", "SIZE", "largest artefact to recommend, e.g. 500k or 2M; measured before anything is trained"),
    ("budget-minutes", "N", "time for everything, the final run included; the schedule is fitted to it"),
    ("trials", "N", "settings tried for each method: learning rates and sizes ({trials})"),
    ("eta", "N", "one candidate in N goes on to the next rung, with N times the steps ({eta})"),
)


def add_to(commands: Any) -> None:
    """Add the command's help; its words are read by `run`, as those of train are."""
    from peft_rag.recommendation.options import SearchOptions

    parser = commands.add_parser(
        "recommend",
        help="find the method that serves your data within a budget, train it, and say why",
        description="Search for the method that serves your data, leave its artefact ready, and say why that method.",
        epilog=_EPILOG + common_training_options(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        usage="peft-rag recommend [RUN.yaml] [--NAME VALUE ...]",
    )
    parser.add_argument("run_file", nargs="?", metavar="RUN.yaml", help="a run file with data and training options")
    defaults = SearchOptions()
    group = parser.add_argument_group("search")
    known = {
        "methods": ",".join(defaults.methods),
        "fusions": ",".join(defaults.fusions),
        "trials": defaults.trials,
        "eta": defaults.eta,
    }
    for name, metavar, text in _OWN:
        flags = sorted({f"--{name}", f"--{name.replace('-', '_')}"})
        group.add_argument(*flags, metavar=metavar, default=argparse.SUPPRESS, help=text.format(**known))
    add_run_options(parser, without=("method", "fusion", *QUERY_TOWER))


def run(words: Sequence[str]) -> None:
    """Search as a run file, if the first word names one, and flags describe."""
    from peft_rag.config import read_yaml
    from peft_rag.recommendation.options import read_options, run_settings

    run_file = words[0] if words and not words[0].startswith("--") else ""
    own = {name.replace("-", "_") for name, *_ in _OWN}
    flags = read_flags(words[1:] if run_file else words, valued=own | valued_names())
    settings = read_yaml(run_file) if run_file else {}
    given_way = [name for name in settings if name.partition(".")[0] in ("method", "fusion")]
    settings = {name: value for name, value in settings.items() if name not in given_way}
    options, rest = read_options({**settings, **flags})
    config = run_settings(options, rest, where=run_file or "the command line")

    from peft_rag.cli.progress import hold_back_chatter, say
    from peft_rag.recommendation.recommend import recommend

    hold_back_chatter()
    if given_way:
        say(f"{run_file}: {', '.join(given_way)} give way to what the search chooses")
    recommend(config, options, say)
