from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from peft_rag.benchmark import runner
from peft_rag.benchmark.pieces import cell_piece
from peft_rag.benchmark.plan import make_plan
from peft_rag.benchmark.results import read_result
from peft_rag.benchmark.runner import run_plan
from peft_rag.benchmark.suite import Suite, read_suite
from peft_rag.cli import main
from peft_rag.errors import ConfigError
from tests.benchmark.test_work import finish

MakeSuite = Callable[..., Suite]

STAND_IN = """
import json, os, signal, sys, time
spec = json.load(open(sys.argv[1]))
with open({log!r}, "a") as log:
    log.write(os.path.basename(spec["target"]) + "\\n")
{misfortune}
facts = {{
    "trial": {{"validation": {{"accuracy": 0.5, "loss": 1.0}}, "main_metric": "accuracy"}},
    "search": {{"audit": {{}}, "index_bytes": 1, "index_seconds": 0.1}},
    "cell": {{"arms": {{"off": {{"scores": {{"accuracy": 0.75}}}}}}, "main_metric": "accuracy"}},
}}
result = {{**spec["header"], "status": "done", "error": "", "sources": {{}}, "seconds": 2.0, **facts[spec["kind"]]}}
os.makedirs(os.path.dirname(spec["target"]), exist_ok=True)
with open(spec["target"] + ".part", "w") as file:
    json.dump(result, file)
os.replace(spec["target"] + ".part", spec["target"])
"""


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Put a process in a worker's place that does nothing but what it is told; return the list of what it was given."""
    log = tmp_path / "asked.txt"

    def put(misfortune: str = "") -> Path:
        log.write_text("")
        script = STAND_IN.format(log=str(log), misfortune=misfortune)
        monkeypatch.setattr(runner, "WORKER", (sys.executable, "-c", script))
        return log

    return put


def small(toy_suite: MakeSuite, **changes: Any) -> Any:
    return make_plan(toy_suite(**{"methods": ["head", "lora"], "fusions": ["knn"], "seeds": [0], **changes}))


@pytest.mark.parametrize("jobs", [1, 3])
def test_pieces_run_in_order_once_and_nothing_is_left_for_a_second_run(
    toy_suite: MakeSuite, stand_in: Callable[..., Path], tmp_path: Path, jobs: int
) -> None:
    log, plan, said = stand_in(), small(toy_suite), list[str]()
    run_plan(plan, tmp_path / "out", said.append, jobs=jobs)
    asked = log.read_text().split()
    assert len(asked) == len(set(asked)) == 1 + 4 + 2
    assert asked.index("kinds-head-knn-s0.json") > asked.index("kinds-head-2.json")
    assert asked.index("kinds-lora-knn-s0.json") > asked.index("kinds-lora-2.json")
    assert said[0] == "0 of 2 cells are done; 4 trials to go before the rest"
    assert any(line.startswith("[1/2] kinds-head-knn-s0: done, accuracy off 75.0, in") for line in said)
    assert said[-1].startswith("[2/2] ")
    assert "left" not in said[-1]
    run_plan(plan, tmp_path / "out", said.append, jobs=jobs)
    assert log.read_text().split() == asked
    assert said[-1] == "2 of 2 cells are done; 0 trials to go before the rest"


def test_one_setting_is_taken_untried(toy_suite: MakeSuite, stand_in: Callable[..., Path], tmp_path: Path) -> None:
    log, plan = stand_in(), small(toy_suite, budget={"max_steps": 6, "trials": 1})
    run_plan(plan, tmp_path, lambda line: None)
    cells = ["kinds-head-knn-s0.json", "kinds-lora-knn-s0.json"]
    assert log.read_text().split() == ["kinds-s0.json", *cells]
    for name, rate in zip(cells, (0.001, 0.002), strict=True):
        result = read_result(tmp_path / name)
        assert result is not None
        assert result["tuning"]["trials"] == []
        assert result["tuning"]["chosen"]["learning_rate"] == rate


def test_what_another_runner_did_meanwhile_is_neither_removed_nor_done_again(
    toy_suite: MakeSuite, stand_in: Callable[..., Path], tmp_path: Path
) -> None:
    log, plan, said = stand_in(), small(toy_suite), list[str]()

    def say(line: str) -> None:
        if not said:
            run_plan(plan, tmp_path / "out", lambda other: None, jobs=3)
        said.append(line)

    run_plan(plan, tmp_path / "out", say)
    assert len(log.read_text().split()) == 1 + 4 + 2
    assert any(line.startswith("[2/2] kinds-lora-knn-s0: done, accuracy off 75.0, in") for line in said)


def test_grown_suite_runs_only_what_is_new(toy_suite: MakeSuite, stand_in: Callable[..., Path], tmp_path: Path) -> None:
    log = stand_in()
    run_plan(small(toy_suite), tmp_path / "out", lambda line: None)
    log.write_text("")
    run_plan(small(toy_suite, methods=["head", "lora", "bitfit"]), tmp_path / "out", lambda line: None)
    assert log.read_text().split() == ["kinds-bitfit-1.json", "kinds-bitfit-2.json", "kinds-bitfit-knn-s0.json"]


def test_results_of_rows_that_the_suite_had_before_are_named(
    toy_suite: MakeSuite, stand_in: Callable[..., Path], tmp_path: Path
) -> None:
    stand_in()
    run_plan(small(toy_suite), tmp_path / "out", lambda line: None)
    said: list[str] = []
    run_plan(small(toy_suite, methods=["head"]), tmp_path / "out", said.append)
    assert said[0] == (
        f"1 results in '{tmp_path / 'out'}' are of no cell of the suite as it is (kinds-lora-knn-s0); they stay in the "
        "report. Remove what should not count"
    )


@pytest.mark.parametrize(
    ("misfortune", "error"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", "killed by SIGKILL, for lack of memory as a rule"),
        ("raise RuntimeError('the disk is full')", "ended with status 1: RuntimeError: the disk is full"),
        ("time.sleep(60)", "stopped after 1 seconds (budget.time_limit)"),
    ],
)
def test_process_that_leaves_no_file_gets_one_that_says_why(
    toy_suite: MakeSuite, stand_in: Callable[..., Path], tmp_path: Path, misfortune: str, error: str
) -> None:
    stand_in(f"if spec['kind'] == 'cell':\n    {misfortune}")
    limit = 1 if "sleep" in misfortune else 600
    plan = small(toy_suite, methods=["head"], budget={"max_steps": 6, "trials": 1, "time_limit": limit})
    said: list[str] = []
    run_plan(plan, tmp_path, said.append)
    result = read_result(tmp_path / "kinds-head-knn-s0.json")
    assert result is not None
    assert (result["status"], result["error"]) == ("failed", error)
    assert result["cell"]["method"] == "head"
    assert result["tuning"]["chosen"] == {"learning_rate": 0.001, "weight_decay": 0.01}
    assert result["arms"] == {}
    assert f"failed ({error})" in said[-1]


def test_cell_whose_trials_all_failed_is_a_failed_cell(
    toy_suite: MakeSuite, stand_in: Callable[..., Path], tmp_path: Path
) -> None:
    log = stand_in("if spec['kind'] == 'trial':\n    raise RuntimeError('no luck')")
    run_plan(small(toy_suite, methods=["head"]), tmp_path, lambda line: None)
    assert "kinds-head-knn-s0.json" not in log.read_text()
    result = read_result(tmp_path / "kinds-head-knn-s0.json")
    assert result is not None
    assert result["error"].startswith("none of 2 trials ended well; the first: ended with status 1")


def test_code_that_changes_under_way_stops_the_run(
    toy_suite: MakeSuite, stand_in: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = stand_in()
    hashes = iter(["one", "one", "two"])
    monkeypatch.setattr(runner, "all_sources_hash", lambda packages: next(hashes))
    with pytest.raises(ConfigError, match="the code changed while the benchmark ran"):
        run_plan(small(toy_suite), tmp_path, lambda line: None)
    assert len(log.read_text().split()) == 1


def test_interrupt_leaves_no_process_and_no_half_file(
    toy_suite: MakeSuite, stand_in: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = stand_in("time.sleep(60)")

    def interrupt(running: Any) -> bool:
        if not log.read_text():
            return False
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "_over", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_plan(small(toy_suite), tmp_path / "out", lambda line: None)
    assert psutil.Process().children() == []
    assert list((tmp_path / "out").rglob("*")) == []


def test_dry_run_lists_cells_trials_and_time_and_runs_nothing(
    mapping: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    suite = tmp_path / "suite.yaml"
    suite.write_text(yaml.safe_dump(mapping))
    assert main(["benchmark", str(suite), "--output", str(tmp_path / "out"), "--dry-run", "--only", "seed=0"]) == 0
    printed = capsys.readouterr().out
    assert "to run  kinds-lora-knn-s0 (its arm without retrieval is the row none)" in printed
    assert "trial   kinds-lora 1: learning_rate 0.002, method.r 8" in printed
    assert "4 cells and 4 trials to run, about " in printed
    both = ["--only", "seed=0", "--only", "method=lora"]
    assert main(["benchmark", str(suite), "--output", str(tmp_path / "out"), "--dry-run", *both]) == 0
    assert "2 cells and 2 trials to run" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_refused_suite_leaves_the_one_beside_its_results_as_it_is(
    mapping: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    suite, folder = tmp_path / "suite.yaml", tmp_path / "out/toy"
    suite.write_text(yaml.safe_dump(mapping))
    folder.mkdir(parents=True)
    (folder / "suite.yaml").write_text("# as it was\n")
    (folder / "kinds-head-knn-s0.json").write_text('{"status": "done", "suite_fingerprint": "another"}')
    assert main(["benchmark", str(suite), "--output", str(tmp_path / "out")]) == 2
    assert "the suite or its data changed" in capsys.readouterr().err
    assert (folder / "suite.yaml").read_text() == "# as it was\n"


def test_mistake_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["benchmark", str(tmp_path / "none.yaml")]) == 2
    assert main(["benchmark", "x.yaml", "--jobs", "0"]) == 2
    assert main(["benchmark", "x.yaml", "--onli", "a"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert "--jobs is 0" in lines[1]
    assert "unknown option '--onli'. Did you mean '--only'?" in lines[2]


@pytest.mark.slow
def test_killed_benchmark_goes_on_to_the_same_results(mapping: dict[str, Any], tmp_path: Path) -> None:
    """The results of processes, one of them killed and the rest by a second runner, are those of one process."""
    suite = tmp_path / "suite.yaml"
    small = {"methods": ["lora"], "fusions": ["none", "knn"], "seeds": [0], "budget": {"max_steps": 4, "trials": 2}}
    suite.write_text(yaml.safe_dump({**mapping, **small}))
    command = [sys.executable, "-m", "peft_rag", "benchmark", str(suite), "--output", str(tmp_path / "cut")]
    command.append("--no-report")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}

    first = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    trial = tmp_path / "cut/toy/trials/kinds-lora-1.json"
    while not trial.exists():
        time.sleep(0.05)
        assert first.poll() is None
    while not (workers := psutil.Process(first.pid).children()):
        time.sleep(0.05)
    written = trial.stat().st_mtime_ns
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert psutil.wait_procs(workers, timeout=30)[1] == []
    assert not (tmp_path / "cut/toy/kinds-lora-knn-s0.json").exists()
    subprocess.run(command, env=environment, check=True, capture_output=True)
    assert trial.stat().st_mtime_ns == written
    cut = json.loads((tmp_path / "cut/toy/kinds-lora-knn-s0.json").read_text())

    cell = next(cell for cell in make_plan(read_suite(suite)).cells if cell.fusion.name == "knn")
    whole = json.loads(json.dumps(finish(cell_piece(cell, tmp_path / "whole"), tmp_path / "whole")))
    assert whole["status"] == "done"
    for name in ("arms", "targets", "tuning", "audit", "fusion_settings", "suite_fingerprint", "command"):
        assert whole[name] == cut[name]
    assert cut["sources"].items() <= whole["sources"].items()  # this process has seen other modules too
