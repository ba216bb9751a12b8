"""What retrieval adds to an epoch of training once neighbours are precomputed."""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path
from typing import Any

from peft_rag.config import RunConfig
from peft_rag.job import Prepared, prepare, with_voters
from peft_rag.training import train


def measure(steps: int, rounds: int) -> dict[str, Any]:
    """Train turn by turn with the fusion ``knn``, its neighbours precomputed, and without retrieval.

    Args:
        steps: of 32 examples each.
        rounds: how often each is timed.

    Returns:
        the median seconds of each, those of each round, and the ratio of the medians.
    """
    with tempfile.TemporaryDirectory() as folder:
        arms = {fusion: _prepared(fusion, Path(folder) / fusion, steps) for fusion in ("none", "knn")}
        seconds: dict[str, list[float]] = {fusion: [] for fusion in arms}
        for number in range(rounds + 1):
            for fusion in sorted(arms, reverse=bool(number % 2)):
                taken = _seconds(arms[fusion])
                if number:  # The first round warms up.
                    seconds[fusion].append(taken)
    medians = {fusion: statistics.median(times) for fusion, times in seconds.items()}
    return {"seconds": medians, "rounds": seconds, "ratio": medians["knn"] / medians["none"], "steps": steps}


def _prepared(fusion: str, working: Path, steps: int) -> Prepared:
    """Prepare the demo run; its neighbours are searched here, before anything is timed."""
    training = {"max_steps": steps, "eval_strategy": "no", "save_strategy": "no", "disable_tqdm": True}
    config = RunConfig(
        train="demo:wiki-topics/train",
        validation="demo:wiki-topics/validation",
        max_length=96,
        fusion=fusion,
        output=str(working),
        options={"fusion": {"space": "retriever"}} if fusion == "knn" else {},
        training=training,
    )
    return with_voters(prepare(config, working, lambda line: None))


def _seconds(prepared: Prepared) -> float:
    report = train(prepared.model, prepared.train, prepared.validation, prepared.arguments, say=lambda line: None)
    return report.seconds
