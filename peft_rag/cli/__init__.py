"""The command line, one command a file. A user's mistake: one line, status 2; a fault of ours: traceback, status 1."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

from peft_rag import __version__
from peft_rag.cli import backbone, benchmark, evaluate, index, plugins, predict, publish, recommend, train
from peft_rag.cli.flags import split_part_options
from peft_rag.errors import PeftRagError

INTERRUPTED = 130
"""Exit status of a command that was interrupted, as shells have it."""

_DESCRIPTION = """\
Tune a pretrained Transformer for your task without changing it: what is trained is small, what must be known is
retrieved, and both are picked by name.

  peft-rag train examples/wiki-topics.yaml            train, measure before and after, save an artefact
  peft-rag train --train a.jsonl --output out/        the same on your own data
  peft-rag recommend --train a.jsonl --output out/    which method for this data? the artefact, and why
  peft-rag predict out/ questions.jsonl --explain     predictions with the neighbours behind them
  peft-rag benchmark examples/benchmark-demo.yaml     methods side by side, with intervals, controls and costs
  peft-rag methods lora                               what can be picked, with options and defaults
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        _dispatch(words)
    except PeftRagError as error:
        print(f"{type(error).__name__}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        sys.stderr.close()
        return 0
    return 0


def _dispatch(words: list[str]) -> None:
    free = {"train": train.run, "recommend": recommend.run}
    if words[:1] and words[0] in free and not {"-h", "--help"} & set(words):
        free[words[0]](words[1:])
        return
    parser = _parser()
    words, parts = split_part_options(words)
    known, rest = parser.parse_known_args(words)
    if not hasattr(known, "run"):
        parser.print_help()
        return
    with _on_device(getattr(known, "device", None)):
        known.run(known, [*rest, *parts])


def _on_device(name: str | None) -> AbstractContextManager[None]:
    """Return a block in which the command computes on the device it names; without one torch need not be imported."""
    if name is None:
        return nullcontext()
    from peft_rag.devices import computing_on

    return computing_on(name)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="peft-rag",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"peft-rag {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for module in (train, recommend, predict, evaluate, publish, benchmark, index, backbone, plugins):
        module.add_to(commands)
    return parser
