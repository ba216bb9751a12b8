"""What an external peer shares with the suite it stands beside: data, shots, seeds and steps, and one file a cell."""

from __future__ import annotations

import argparse
import itertools
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from peft_rag.benchmark.plan import Setting, as_run, make_plan
from peft_rag.benchmark.provenance import about
from peft_rag.benchmark.results import DONE, read_result, write_result
from peft_rag.benchmark.sources import expand
from peft_rag.benchmark.suite import read_suite
from peft_rag.config import RunConfig
from peft_rag.data import Splits
from peft_rag.files import sha256_of_file, sha256_of_json
from peft_rag.job import read_data


@dataclass(frozen=True)
class Answer:
    """What a peer answers.

    Attributes:
        probabilities: of the test examples, ``(N, C)``, classes in the task's order.
        costs: what it measured of itself, by the names of a cell file.
    """

    probabilities: np.ndarray[Any, Any]
    costs: dict[str, Any]


Peer = Callable[[RunConfig, Splits], Answer]


def main(method: str, script: str, packages: Sequence[str], peer: Peer) -> None:
    """Run a peer once for each data set, number of shots and seed of a suite, and leave its cells beside the others.

    Each cell has a process of its own, as a suite's own cells have, so that none inherits another's memory. One that is
    there counts while the suite, the data and the peer's script are what they were.
    """
    parser = argparse.ArgumentParser(description=f"Run {method} on the data, shots and seeds of a suite.")
    parser.add_argument("suite", help="e.g. benchmarks/suites/banking77-10shot.yaml")
    parser.add_argument("--output", default="benchmarks/results", help="folder of the results (%(default)s)")
    parser.add_argument("--redo", action="store_true", help="run again what is stale or failed")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)  # a setting and a seed: the process of one cell
    known = parser.parse_args()
    suite = read_suite(known.suite)
    settings = {cell.setting.name: cell.setting for cell in make_plan(suite).cells}
    for name, seed in [known.one] if known.one else itertools.product(settings, map(str, suite.seeds)):
        path = Path(known.output) / suite.name / f"{name}-{method}-none-s{seed}.json"
        state = sha256_of_json([settings[name].fingerprint, seed, sha256_of_file(Path(sys.argv[0]))])
        if known.one:
            made = {"suite_fingerprint": state, "command": f"python benchmarks/peers/{script} {known.suite}"}
            result = _cell(settings[name], method, int(seed), packages, peer) | made
            write_result(path, result)
            print(f"{path.stem}: {result['status']} {result['error']}", flush=True)
        elif _to_run(path, state, redo=known.redo):
            again = [sys.executable, sys.argv[0], known.suite, "--output", known.output, "--one", name, seed]
            if subprocess.run(again, check=False).returncode:
                raise SystemExit(f"{path.stem} left no result; why is said above.")


def _to_run(path: Path, state: str, *, redo: bool) -> bool:
    """Say whether a cell is to be run, and print why not."""
    held = read_result(path)
    if held is None:
        return True
    stale = held["suite_fingerprint"] != state
    if redo and (stale or held["status"] != DONE):
        return True
    print(f"{path.stem}: there already, {'stale: --redo runs it again' if stale else held['status']}", flush=True)
    return False


def _cell(setting: Setting, method: str, seed: int, packages: Sequence[str], peer: Peer) -> dict[str, Any]:
    sources = {name: expand(source) for name, source in setting.data.sources.items()}
    config = as_run({**setting.settings, **sources, "seed": seed})
    splits = read_data(config)
    started, begun = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), time.perf_counter()
    status, error, facts = "done", "", {}
    try:
        facts = _facts(splits, peer(config, splits))
    except Exception as caught:
        status, error = "failed", f"{type(caught).__name__}: {' '.join(str(caught).split())}"
    key = {"dataset": setting.data.name, "shots": setting.shots, "backbone": setting.backbone}
    made = about([]) | {"sources": {}, "started": started, "seconds": time.perf_counter() - begun}
    made["versions"] |= {"python": platform.python_version()} | {name: _version(name) for name in packages}
    return {
        "format": 1,
        "suite": setting.suite.name,
        "setting_fingerprint": setting.fingerprint,
        "cell": {**key, "method": method, "fusion": "none", "seed": seed, "external": True},
        **{"main_metric": "", "targets": [], "arms": {}, "costs": {}, "tuning": {"trials": [], "chosen": {}}},
        "status": status,
        "error": error,
        **made,
        **facts,
    }


def _facts(splits: Splits, answer: Answer) -> dict[str, Any]:
    import torch

    from peft_rag.benchmark.work import described_arm, plain_targets

    targets = splits.task.targets(splits.test)
    log_probs = torch.tensor(answer.probabilities).clamp(min=1e-12).log()
    return {
        "main_metric": splits.task.main_metric,
        "statistic": splits.task.statistic,
        "targets": plain_targets(splits.task, targets),
        "arms": {"off": described_arm(splits.task, log_probs, targets)},
        "costs": answer.costs,
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
