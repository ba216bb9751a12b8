"""Run a suite: one process a piece, a file for each as it ends, and on again where it stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from peft_rag.benchmark.pieces import (
    CannotRun,
    Piece,
    failure_header,
    is_done,
    needed_by,
    open_pieces,
    packages_of,
    spec_of,
    suite_of,
)
from peft_rag.benchmark.plan import Plan
from peft_rag.benchmark.progress import Progress
from peft_rag.benchmark.provenance import about, all_sources_hash
from peft_rag.benchmark.results import read_result, write_failure
from peft_rag.benchmark.sources import without_places
from peft_rag.errors import ConfigError
from peft_rag.files import write_bytes

Say = Callable[[str], None]

WORKER = (sys.executable, "-m", "peft_rag.benchmark.worker")
_PAUSE = 0.05


@dataclass
class Running:
    """A process at work.

    Attributes:
        piece: what it does.
        process: which it is.
        log: what it says.
        begun: when it was started, in seconds of the monotonic clock.
    """

    piece: Piece
    process: subprocess.Popen[bytes]
    log: Path
    begun: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.begun


def run_plan(plan: Plan, folder: Path, say: Say = print, *, jobs: int = 1, redo: bool = False) -> None:
    """Do what is still to be done of a suite.

    Args:
        plan: of the suite.
        folder: of its results; files of cells that are there and count are left as they are.
        say: takes each line of progress.
        jobs: processes at once; with more than one they share the processor's cores.
        redo: do again what is stale or did not end well.

    Raises:
        ConfigError: results there no longer count, or the code changes while the suite runs.
    """
    packages = packages_of(plan.cells)
    code = all_sources_hash(packages)
    waiting = open_pieces(plan, folder, redo=redo)
    progress = Progress(plan, folder, waiting, say)
    progress.begin()
    running: list[Running] = []
    with tempfile.TemporaryDirectory() as place, _stopped_at_the_end(running):
        while waiting or running:
            while len(running) < jobs and (piece := _next_ready(waiting, running, folder)) is not None:
                if all_sources_hash(packages) != code:
                    raise ConfigError(
                        "the code changed while the benchmark ran, and its results must not mix. Run it from a copy "
                        "of the sources that stays as it is; what is done stays done."
                    )
                waiting.remove(piece)
                started = _start(piece, folder, Path(place), jobs)
                if started is None:
                    progress.end(piece, 0.0)
                else:
                    running.append(started)
            for one in [one for one in running if _over(one)]:
                running.remove(one)
                _file_left_by(one, folder)
                progress.end(one.piece, one.seconds)
            time.sleep(_PAUSE)


def _next_ready(waiting: list[Piece], running: list[Running], folder: Path) -> Piece | None:
    """Return the first piece that rests on nothing unfinished."""
    unfinished = {piece.target for piece in waiting} | {one.piece.target for one in running}
    for piece in waiting:
        if not any(needed.target in unfinished for needed in needed_by(piece, folder)):
            return piece
    return None


def _start(piece: Piece, folder: Path, place: Path, jobs: int) -> Running | None:
    """Start a process for a piece; None where it cannot run, or another runner on this folder has done it meanwhile."""
    if is_done(piece):
        return None
    piece.target.unlink(missing_ok=True)
    try:
        spec = spec_of(piece, folder)
    except CannotRun as error:
        _write_failure(piece, folder, str(error), 0.0)
        return None
    path = place / f"{piece.kind}-{piece.target.stem}.json"
    path.write_text(json.dumps(spec), encoding="utf-8")
    log = path.with_suffix(".log")
    environment = os.environ | {"TOKENIZERS_PARALLELISM": "false", "PYTHONWARNINGS": "ignore"}
    if jobs > 1:
        environment["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // jobs))
    with log.open("wb") as file:
        process = subprocess.Popen(
            [*WORKER, str(path)],
            stdin=subprocess.PIPE,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
    return Running(piece, process, log)


def _over(running: Running) -> bool:
    """Say whether a process has ended; end it where its time is up."""
    if running.process.poll() is not None:
        return True
    if running.seconds > suite_of(running.piece).budget.time_limit:
        _kill(running)
        return True
    return False


def _file_left_by(running: Running, folder: Path) -> None:
    """Make sure that a piece has a file: write it where the process could not."""
    piece, status = running.piece, running.process.returncode
    if running.process.stdin is not None:
        running.process.stdin.close()
    if read_result(piece.target) is not None:
        return
    limit = suite_of(piece).budget.time_limit
    if running.seconds > limit:
        error = f"stopped after {limit:,.0f} seconds (budget.time_limit)"
    elif status < 0:
        name = signal.Signals(-status).name
        error = f"killed by {name}" + (", for lack of memory as a rule" if name == "SIGKILL" else "")
    else:
        error = f"ended with status {status}: {_last_line(running.log)}"
    _write_failure(piece, folder, error, running.seconds)


def _write_failure(piece: Piece, folder: Path, error: str, seconds: float) -> None:
    began = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - seconds))
    made = about([]) | {"sources": {}, "started": began}
    sources = piece.work.setting.data.sources
    write_failure(piece.target, failure_header(piece, folder), without_places(error, sources), made, seconds)


def _last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"


def _kill(running: Running) -> None:
    """End a process and all that it started, and wait for it."""
    with suppress(ProcessLookupError):
        os.killpg(running.process.pid, signal.SIGKILL)
    running.process.wait()
    if running.process.stdin is not None:
        running.process.stdin.close()


@contextmanager
def _stopped_at_the_end(running: list[Running]) -> Iterator[None]:
    """Leave no process behind, whatever ends the run."""
    try:
        yield
    finally:
        for one in running:
            _kill(one)


def keep_suite(source: Path, folder: Path) -> None:
    """Lay the suite's file beside its results."""
    folder.mkdir(parents=True, exist_ok=True)
    if source.resolve() != (folder / "suite.yaml").resolve():
        write_bytes(folder / "suite.yaml", source.read_bytes())
