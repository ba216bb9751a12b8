"""What a benchmark says while it runs: what ended, how, how much is left and how long that takes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from peft_rag.benchmark.pieces import Piece, cell_piece, needed_by
from peft_rag.benchmark.plan import Plan, make_plan
from peft_rag.benchmark.results import DONE, read_result

_MINUTE, _HOUR = 60, 3600


class Progress:
    """Counts pieces and seconds; what is left is judged by what pieces of the same kind took."""

    def __init__(self, plan: Plan, folder: Path, waiting: Sequence[Piece], say: Callable[[str], None]) -> None:
        """Look at what is done already, so that the first guess is a measured one where there is any."""
        self.plan, self.folder, self.say = plan, folder, say
        self.left = list(waiting)
        self.cells = len(plan.cells)
        self.seconds: dict[tuple[str, str], list[float]] = defaultdict(list)
        for cell in plan.cells:
            piece = cell_piece(cell, folder)
            for done in (piece, *needed_by(piece, folder)):
                result = read_result(done.target) if done not in self.left else None
                if result is not None:
                    self.seconds[done.class_of_cost].append(float(result["seconds"]))

    def begin(self) -> None:
        """Say what there is to do."""
        for name, why in self.plan.skipped.items():
            self.say(f"left out: data set '{name}', because {why}")
        beside = _beside(self.plan, self.folder)
        if beside:
            self.say(
                f"{len(beside)} results in '{self.folder}' are of no cell of the suite as it is ({beside[0]}"
                f"{', …' if len(beside) > 1 else ''}); they stay in the report. Remove what should not count"
            )
        trials = sum(piece.kind == "trial" for piece in self.left)
        self.say(
            f"{self.cells - self._open_cells()} of {self.cells} cells are done; {trials} trials to go before the rest"
        )

    def end(self, piece: Piece, seconds: float) -> None:
        """Say that a piece has ended, and what is left."""
        self.left.remove(piece)
        self.seconds[piece.class_of_cost].append(seconds)
        result = read_result(piece.target) or {}
        left = self.time_left()
        about = f"; about {left} left" if left else ""
        done = self.cells - self._open_cells()
        self.say(f"[{done}/{self.cells}] {piece.name}: {_outcome(result)} in {seconds:.0f} s{about}")

    def time_left(self) -> str:
        """Return how long the rest takes, as a person says it; empty where nothing is left."""
        return in_words(sum(self._expected(piece) for piece in self.left)) if self.left else ""

    def _open_cells(self) -> int:
        return sum(piece.kind == "cell" for piece in self.left)

    def _expected(self, piece: Piece) -> float:
        known = self.seconds.get(piece.class_of_cost) or [one for times in self.seconds.values() for one in times]
        return sum(known) / len(known) if known else 0.0


def in_words(seconds: float) -> str:
    """Say a duration as a person does.

    >>> in_words(50), in_words(600), in_words(9000)
    ('1 min', '10 min', '2 h 30 min')
    """
    minutes = max(1, round(seconds / _MINUTE))
    hours, rest = divmod(minutes, _HOUR // _MINUTE)
    return f"{hours} h {rest:02d} min" if hours else f"{minutes} min"


def _outcome(result: Mapping[str, Any]) -> str:
    if result.get("status") != DONE:
        return f"{result.get('status', 'failed')} ({result.get('error', '')})"
    metric = result.get("main_metric", "")
    if "arms" in result:
        shown = {arm: result["arms"][arm]["scores"][metric] for arm in ("off", "retrieved") if arm in result["arms"]}
        return "done, " + ", ".join(f"{metric} {arm} {100 * value:.1f}" for arm, value in shown.items()) + ","
    if "validation" in result:
        return f"done, validation {metric} {100 * result['validation'][metric]:.1f},"
    return "done"


def _beside(plan: Plan, folder: Path) -> list[str]:
    """Name the results that are of no cell of the suite: of rows or seeds that it had before, or of another program."""
    known = {cell.name for cell in make_plan(plan.suite).cells}
    names = [path.stem for path in sorted(folder.glob("[!.]*.json")) if path.stem not in known]
    return [name for name in names if not any(name.startswith(f"{absent}-") for absent in plan.skipped)]
