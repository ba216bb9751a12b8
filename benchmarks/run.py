"""Run the stored suites: ``python benchmarks/run.py`` for all, ``python benchmarks/run.py sst2 --dry-run`` for one.

The same as ``peft-rag benchmark benchmarks/suites/NAME.yaml``, one after the other; further flags are handed on.
"""

from __future__ import annotations

import sys
from pathlib import Path

from peft_rag.cli import INTERRUPTED, main

SUITES = Path(__file__).parent / "suites"


def run(words: list[str]) -> int:
    """Run the suites named before the first flag, or all, until one is interrupted; return the last status not 0."""
    first_flag = next((place for place, word in enumerate(words) if word.startswith("--")), len(words))
    names = words[:first_flag] or sorted(path.stem for path in SUITES.glob("*.yaml"))
    last = 0
    for name in names:
        status = main(["benchmark", str(SUITES / f"{name}.yaml"), *words[first_flag:]])
        if status == INTERRUPTED:
            return status
        last = status or last
    return last


if __name__ == "__main__":
    raise SystemExit(run(sys.argv[1:]))
