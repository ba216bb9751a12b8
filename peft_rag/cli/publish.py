"""``peft-rag publish``: a saved artefact, pushed to the hub."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peft_rag.cli.flags import refuse

_DESCRIPTION = """\
Push a saved artefact to the hub: the files that are loaded, what was measured and the model card, and nothing else that
lies in the folder. Every file is checked against its hash first. Of files and folders of this machine (data, corpus, a
backbone of your own) only the names are published. Log in before, with hf auth login, or set HF_TOKEN.
"""


def add_to(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "publish", help="push a saved artefact to the hub", description=_DESCRIPTION, allow_abbrev=False
    )
    parser.add_argument("artefact", help="folder that --output made")
    parser.add_argument("repo_id", metavar="repo-id", help="where it goes: NAME/ADAPTER; made if it is not there")
    parser.add_argument("--private", action="store_true", help="make it private, if it is not there yet")
    parser.set_defaults(run=_run)


def _run(known: argparse.Namespace, rest: Sequence[str]) -> None:
    from peft_rag.artefact_files import artefact_bytes
    from peft_rag.publishing import publish_folder

    refuse(rest, ["--private"])
    folder = Path(known.artefact)
    address = publish_folder(folder, known.repo_id, private=known.private)
    print(f"{folder} ({artefact_bytes(folder) / 1000:,.0f} kB) is at {address}")
