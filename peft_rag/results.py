"""What a run measured: the content of ``metrics.json``, and the table a person reads."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from peft_rag.config import RunConfig
from peft_rag.evaluation.bootstrap import in_percent

if TYPE_CHECKING:
    from peft_rag.evaluation.bootstrap import Score
    from peft_rag.model import RetrievalAugmentedModel
    from peft_rag.refusals import LeftOut
    from peft_rag.training import TrainingReport

Arms = Mapping[str, Mapping[str, "Score"]]


def metrics(
    config: RunConfig,
    model: RetrievalAugmentedModel,
    arms: Arms,
    training: TrainingReport,
    *,
    test_examples: int,
    overlap: Mapping[str, Any],
    left_out: Mapping[str, LeftOut],
) -> dict[str, Any]:
    """Return the content of ``metrics.json``.

    ``before`` and ``after`` are the untrained and the shipped model on the test split, each metric by name; ``test``
    is the shipped model again, with ``arms`` holding every row of the table and its intervals.

    Args:
        config: of the run.
        model: trained.
        arms: scores by arm and metric; ``untrained`` and ``without_retrieval`` at least.
        training: what it cost.
        test_examples: how many examples the scores rest on.
        overlap: which of them stand in the corpus too, and scores with and without them
            (`peft_rag.evaluation.overlap.scores_by_overlap`).
        left_out: records of each split that could not be used; a split that lost none is left out.
    """
    from peft_rag.versions import versions

    trained = sum(tensor.numel() for tensor in model.trained_state().values())
    total = sum(parameter.numel() for parameter in model.parameters())
    after = arms.get("with_retrieval", arms["without_retrieval"])
    return {
        "before": _values(arms["untrained"]),
        "after": _values(after),
        "test": _values(after),
        "arms": {arm: {name: score.to_dict() for name, score in scores.items()} for arm, scores in arms.items()},
        "test_examples": test_examples,
        "overlap": dict(overlap),
        "left_out": {name: given.to_dict() for name, given in left_out.items() if given.reasons},
        "trainable_parameters": trained,
        "trainable_percent": 100 * trained / total,
        "artefact_bytes": 0,
        "train_seconds": training.seconds,
        "examples_per_second": training.examples_per_second,
        "steps": training.steps,
        "best_step": training.best_step,
        "peak_memory_bytes": peak_memory_bytes(),
        "data": {
            "train": config.train,
            "validation": config.validation or f"{config.validation_share:.0%} of train",
            "test": config.test or "the validation split, on which settings were chosen too",
            "corpus": config.corpus or config.train,
        },
        "fusion": model.fusion.to_dict(),
        "gate": model.gates.get(model.adapter),
        "seed": config.seed,
        "config": {name: value for name, value in config.to_dict().items() if name not in ("output", "resume")},
        "versions": versions(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def table(arms: Arms, data: str, test_examples: int) -> list[str]:
    """Return the lines a terminal shows: a row an arm, a column a metric, 95% intervals in brackets."""
    names = list(arms["untrained"])
    width = max(len(arm) for arm in arms) + 2
    cells = [str(score) for scores in arms.values() for score in scores.values()]
    scale = in_percent(name for scores in arms.values() for name, score in scores.items() if not score.percent)
    column = max(len(word) for word in (*cells, *names, "100.0 [100.0, 100.0]")) + 2
    lines = [
        f"{scale} on {test_examples:,} examples of {data}, 95% bootstrap intervals in brackets",
        "".ljust(width) + "".join(name.ljust(column) for name in names),
    ]
    for arm, scores in arms.items():
        lines.append(arm.replace("_", " ").ljust(width) + "".join(str(scores[name]).ljust(column) for name in names))
    return [line.rstrip() for line in lines]


def peak_memory_bytes() -> int:
    """Return the largest resident memory of this process in bytes, the accelerator's added where there is one."""
    import resource
    import sys

    import torch

    unit = 1 if sys.platform == "darwin" else 1024
    device = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit + int(device)


def _values(scores: Mapping[str, Score]) -> dict[str, float]:
    return {name: score.value for name, score in scores.items()}
