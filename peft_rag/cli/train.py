"""``peft-rag train``: the main job."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from peft_rag.cli.flags import read_flags

_COMMON = {
    "learning_rate": "step size; each method has a default",
    "num_train_epochs": "passes over the training data (3)",
    "max_steps": "steps instead of epochs",
    "per_device_train_batch_size": "examples of one step on one device (32)",
    "gradient_accumulation_steps": "batches of one step (1)",
    "optim": "optimiser: adamw_torch, sgd, adafactor, …",
    "weight_decay": "(0.01)",
    "lr_scheduler_type": "linear, cosine, constant_with_warmup, …",
    "warmup_steps": "steps, or a share of them below 1 (0.1)",
    "bf16, fp16": "mixed precision",
    "activation_checkpointing": "less memory, more time (gradient checkpointing)",
    "eval_strategy": "when to look at validation: epoch, steps, no",
    "use_cpu": "leave the accelerator alone",
}
_EPILOG = """\
A run file holds the same names, one a line (method: lora); flags come after it and win. A part takes options of its
own: --method.r 4, --fusion.k 16, --task.pooling cls, --retriever.M 32; in a run file `method: {name: lora, r: 4}`.

common training options, any name of transformers.TrainingArguments is taken:
"""


def add_to(commands: Any) -> None:
    """Add the command's help; its words are read by `run`, because parts and trainers bring flags of their own."""
    parser = commands.add_parser(
        "train",
        help="train a method with retrieval, measure before and after, save a small artefact",
        description="Train what is small, retrieve the rest, measure before and after, and save a small artefact.",
        epilog=_EPILOG + common_training_options(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        usage="peft-rag train [RUN.yaml] [--NAME VALUE ...]",
    )
    parser.add_argument("run_file", nargs="?", metavar="RUN.yaml", help="a run file, e.g. examples/wiki-topics.yaml")
    add_run_options(parser)


def common_training_options() -> str:
    """Return help on the training options that are asked for most, a line each."""
    return "\n".join(f"  --{name.ljust(30)}{help}" for name, help in _COMMON.items())


def add_run_options(parser: argparse.ArgumentParser, without: Sequence[str] = ()) -> None:
    """Add help on the names of a run file, but for some."""
    from peft_rag.config import RunConfig

    groups: dict[str, Any] = {}
    for entry in fields(RunConfig):
        if "help" not in entry.metadata or entry.name in without:
            continue
        title = entry.metadata["group"]
        if title not in groups:
            groups[title] = parser.add_argument_group(title)
        default = "" if entry.default in ("", False, None) else f" ({entry.default})"
        text = (entry.metadata["help"] + default).replace("%", "%%")
        flags = sorted({f"--{entry.name}", f"--{entry.name.replace('_', '-')}"}, reverse=True)
        switch: dict[str, Any] = {"nargs": "?", "const": "true"} if isinstance(entry.default, bool) else {}
        groups[title].add_argument(*flags, default=argparse.SUPPRESS, metavar="VALUE", help=text, **switch)


def valued_names() -> set[str]:
    """Return the names of a run that cannot stand alone as a flag, because they are no switches."""
    from peft_rag.config import RunConfig

    return {entry.name for entry in fields(RunConfig) if not isinstance(entry.default, bool)}


def run(words: Sequence[str]) -> None:
    """Run the job that a run file, if the first word names one, and flags describe."""
    from peft_rag.config import from_mapping, read_yaml

    run_file = words[0] if words and not words[0].startswith("--") else ""
    settings: dict[str, Any] = read_yaml(run_file) if run_file else {}
    flags = read_flags(words[1:] if run_file else words, valued=valued_names())
    config = from_mapping(_merge(settings, flags), where=run_file or "the command line")

    from peft_rag.cli.progress import hold_back_chatter, say
    from peft_rag.job import run as run_job

    hold_back_chatter()
    run_job(config, say)


def _merge(settings: dict[str, Any], flags: dict[str, Any]) -> dict[str, Any]:
    """Lay flags over a run file; naming another part drops the options the file gave to the one it named."""
    kept, laid = dict(settings), dict(flags)
    for name, value in flags.items():
        held = settings.get(name)
        named = held.get("name") if isinstance(held, dict) else held
        if name in settings and named != value:
            kept = {key: one for key, one in kept.items() if not key.startswith(f"{name}.")}
        elif isinstance(held, dict):  # the same part, with options
            del laid[name]
    return kept | laid
