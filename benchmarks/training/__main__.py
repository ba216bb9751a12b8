"""Measure training: ``python -m benchmarks.training --output benchmarks/results/training/default.json``."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.training.data import DEMO, available, load
from benchmarks.training.side import BARE, OURS, PROBED, Work, measure
from benchmarks.training.table import markdown
from peft_rag.benchmark.provenance import machine
from peft_rag.files import write_json
from peft_rag.versions import versions

_MIXED_TOKENS = 256
_BATCH_SIZE = 32


@dataclass(frozen=True)
class Comparison:
    """One data set that every side is trained on.

    Attributes:
        data: its name.
        max_length: tokens of one input at most.
        equal: whether every text is cut to just that many.
        sides: what is compared.
    """

    data: str
    max_length: int
    equal: bool
    sides: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{self.data}, {f'{self.max_length} tokens each' if self.equal else 'mixed lengths'}"


def plan(data: Sequence[str], equal: int) -> list[Comparison]:
    """Return the comparisons over data sets of mixed lengths, and over the demo texts at one length (0 for none)."""
    mixed = [Comparison(name, _MIXED_TOKENS, False, (BARE, OURS)) for name in data]
    if mixed:
        mixed[-1] = Comparison(data[-1], _MIXED_TOKENS, False, (BARE, OURS, PROBED))
    return [*mixed, *([Comparison(DEMO, equal, True, (BARE, OURS))] if equal else [])]


def compare(
    comparison: Comparison, known: argparse.Namespace, folder: Path, say: Callable[[str], None]
) -> dict[str, Any]:
    """Run the sides of a comparison turn by turn, each round with a seed of its own and in the other order."""
    at_least = comparison.max_length if comparison.equal else 0
    data = load(comparison.data, known.examples, known.test_examples, at_least=at_least).write(folder)
    measured: dict[str, list[dict[str, float]]] = {side: [] for side in comparison.sides}
    for seed in range(known.rounds):
        work = Work(str(data), comparison.max_length, known.steps, _BATCH_SIZE, known.learning_rate, seed)
        for side in comparison.sides if seed % 2 else reversed(comparison.sides):
            measured[side].append(measure(side, work))
            say(f"{comparison.name}, round {seed + 1}, {side}: {measured[side][-1]}")
    return asdict(comparison) | {"name": comparison.name, "measured": measured}


def run(known: argparse.Namespace, say: Callable[[str], None]) -> dict[str, Any]:
    """Measure every comparison of the plan."""
    with tempfile.TemporaryDirectory() as parent:
        compared = [
            compare(comparison, known, Path(parent) / str(number), say)
            for number, comparison in enumerate(plan(known.data, known.equal))
        ]
    return {
        "comparisons": compared,
        "examples": known.examples,
        "test_examples": known.test_examples,
        "batch_size": _BATCH_SIZE,
        "steps": known.steps,
        "rounds": known.rounds,
        "learning_rate": known.learning_rate,
        "machine": machine(),
        "versions": versions(),
        "command": " ".join(["python -m benchmarks.training", *sys.argv[1:]]),
    }


def main() -> None:
    """Read the flags, measure, print the table, and write the result where it is wanted."""
    there = available()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", nargs="*", choices=there, default=there[:2], help="data sets of mixed lengths")
    parser.add_argument("--equal", type=int, default=64, help="tokens of the demo texts of one length (64; 0 for none)")
    parser.add_argument("--examples", type=int, default=1024, help="texts to train on (1024)")
    parser.add_argument("--test-examples", type=int, default=100, help="texts of the test split (100)")
    parser.add_argument(
        "--steps",
        type=int,
        default=8,
        help="of 32 texts (8, which take every length of 1024 texts in its share: a whole group of sorted batches)",
    )
    parser.add_argument("--rounds", type=int, default=3, help="times each side is run, each with its own seed (3)")
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="of every side (1e-3)")
    parser.add_argument("--output", type=Path, help="write the result here as JSON")
    known = parser.parse_args()
    result = run(known, lambda line: print(line, file=sys.stderr, flush=True))
    if known.output:
        write_json(known.output, result)
    print(markdown(result), end="")


if __name__ == "__main__":
    main()
