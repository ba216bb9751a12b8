"""A piece of a benchmark in its own process: ``python -m peft_rag.benchmark.worker SPEC.json``; the runner calls it.

Whatever happens, the file that the spec names is written once and whole, with ``done``, ``diverged`` or ``failed`` in
it; only where the process is killed is there none, and the runner writes it. When the runner dies, so does its worker.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peft_rag.benchmark.results import finished, write_result


def main() -> int:
    """Do the work of the spec that the command line names."""
    threading.Thread(target=_die_with_the_runner, daemon=True).start()
    spec: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    result = do(spec)
    write_result(Path(spec["target"]), result)
    return 0 if result["status"] == "done" else 1


def do(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Do a piece of work and return its file's content; a failure is a content too."""
    from peft_rag.benchmark.provenance import about, all_sources_hash, loaded_sources
    from peft_rag.benchmark.work import WORK
    from peft_rag.errors import DivergedError

    started, begun = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), time.perf_counter()
    code = all_sources_hash(spec["packages"])
    facts: dict[str, Any] = {}
    status, error = "done", ""
    try:
        facts = WORK[spec["kind"]](spec)
    except DivergedError as caught:
        status, error = "diverged", _one_line(caught)
    except Exception as caught:
        traceback.print_exc()
        status, error = "failed", f"{type(caught).__name__}: {_one_line(caught)}"
    if all_sources_hash(spec["packages"]) != code:  # what is hashed below is not what has run
        status, error, facts = "failed", "the code changed while it ran; run it again with --redo", {}
    made = about(spec["packages"]) | {"sources": loaded_sources(spec["packages"]), "started": started}
    return finished(spec["header"], status, error, made, time.perf_counter() - begun, facts)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _die_with_the_runner() -> None:
    """End the process when the runner, which holds the other end of standard input, is gone."""
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    raise SystemExit(main())
