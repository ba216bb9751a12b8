"""What ``peft-rag predict`` does besides where the artefact's task writes text: ways of decoding, and streaming."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from peft_rag.model import RetrievalAugmentedModel
    from peft_rag.tasks.base import Example

PREFIX = "decoding."


def add_writing_options(parser: argparse.ArgumentParser) -> None:
    """Add the flags for tasks that write text."""
    group = parser.add_argument_group("tasks that write text")
    group.add_argument("--stream", action="store_true", help="show each text as it is written, instead of JSON Lines")
    group.add_argument("--seed", type=int, help="of sampling (--decoding.do_sample true)")
    group.add_argument(
        "--decoding.NAME",
        dest="decoding",
        metavar="VALUE",
        help="any of transformers.GenerationConfig's names: --decoding.num_beams 4, --decoding.temperature 0.7, "
        "--decoding.stop_strings '###'; or --decoding.json_schema FILE, which texts then keep to (extra schema); over "
        "those saved with the artefact",
    )


def decoding_of(words: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """Take ways of decoding out of a command line's words.

    >>> decoding_of(["--decoding.num_beams", "4", "--other"])
    (['--other'], {'num_beams': 4})

    Raises:
        ConfigError: transformers does not know one.
    """
    from peft_rag.cli.flags import read_flags, split_part_options
    from peft_rag.config import as_number
    from peft_rag.tasks.decoding import checked_decoding

    own, parts = split_part_options(words)
    flags = read_flags(parts)
    others = [f"--{name}" for name in flags if not name.startswith(PREFIX)]
    options = {name.removeprefix(PREFIX): as_number(value) for name, value in flags.items() if name.startswith(PREFIX)}
    return [*own, *others], checked_decoding(options)


def check_writes(model: RetrievalAugmentedModel, known: argparse.Namespace, decoding: dict[str, Any]) -> None:
    """Raise `ConfigError` where options for written texts meet a task that writes none."""
    from peft_rag.errors import ConfigError

    given = "--stream" if known.stream else "--seed" if known.seed is not None else "--decoding" if decoding else ""
    if given and not model.task.generates:
        raise ConfigError(f"{given} is for tasks that write text, but this artefact's picks labels. Leave it out.")
    if known.stream and {**getattr(model.task, "decoding", {}), **decoding}.get("num_beams", 1) != 1:
        raise ConfigError(
            "--stream shows tokens as they are settled, which beams do not do. Set --decoding.num_beams 1."
        )


def stream(model: RetrievalAugmentedModel, examples: Sequence[Example | str], decoding: dict[str, Any]) -> None:
    """Print the text to each example as it is written, an empty line between two; words in its place as they are."""
    from transformers import TextStreamer

    from peft_rag.generation import write

    for place, example in enumerate(examples):
        if place:
            print()
        if isinstance(example, str):
            print(example)
            continue
        streamer = TextStreamer(model.tokenizer, skip_prompt=model.decoder_start is None, skip_special_tokens=True)
        write(model, [example], streamer=streamer, **decoding)
