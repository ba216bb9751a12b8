"""Scores split by whether the corpus holds the text that is asked about, and how they are told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from peft_rag.decisions import Decisions

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from peft_rag.retrieval.overlap import OverlapReport
    from peft_rag.tasks.base import Example, Task


def scores_by_overlap(
    task: Task,
    answers: Mapping[str, Tensor],
    targets: Tensor,
    report: OverlapReport,
    examples: Sequence[Example] = (),
) -> dict[str, Any]:
    """Score every arm by the task's main metric on all examples, on those the corpus holds, and on the others.

    Args:
        task: gives the metric.
        answers: log-probabilities on the N examples by arm, in nats.
        targets: of the same examples.
        report: which of them overlap.
        examples: these, where each takes several decisions or is scored by its words.

    Returns:
        As JSON: how many ``examples`` there are, how many of them stand in the corpus word for word (``exact``) or only
        nearly (``near``, None where that was not looked for), the ``threshold`` of that, the ``metric``, and its values
        ``all``, ``overlapping`` and ``clean`` by arm; None where there is no example.
    """
    overlapping, exact = report.mask(), report.mask("exact")
    decisions = Decisions.on(task, examples) if examples else None

    def score(given: Tensor, part: NDArray[np.bool_]) -> float | None:
        if not part.any():
            return None
        rows = part if decisions is None else part[decisions.owners]
        kept = [example for example, chosen in zip(examples, part, strict=False) if chosen]
        return task.evaluate(given[rows], targets[rows], examples=kept, resamples=0)[task.main_metric].value

    return {
        "examples": report.queries,
        "exact": int(exact.sum()),
        "near": None if report.threshold is None else int((overlapping & ~exact).sum()),
        "threshold": report.threshold,
        "metric": task.main_metric,
        "arms": {
            arm: {
                "all": score(given, overlapping | ~overlapping),
                "overlapping": score(given, overlapping),
                "clean": score(given, ~overlapping),
            }
            for arm, given in answers.items()
        },
    }


def overlap_lines(overlap: Mapping[str, Any]) -> list[str]:
    """Return the line that says what `scores_by_overlap` found, of the last arm, in percent; none where it found none.

    >>> arms = {"with_retrieval": {"all": 0.9, "overlapping": 1.0, "clean": 0.85}}
    >>> found = {"examples": 30, "exact": 9, "near": 1, "threshold": 0.95, "metric": "accuracy", "arms": arms}
    >>> overlap_lines(found)
    ['10 of 30 texts stand in the corpus too (9 word for word, 1 nearly): accuracy 100.0 on these, 85.0 on the others']
    """
    exact, near = overlap["exact"], overlap["near"] or 0
    if not exact + near:
        return []
    kinds = f"{exact:,} word for word" + ("" if overlap["near"] is None else f", {near:,} nearly")
    scores = list(overlap["arms"].values())[-1]
    clean = "" if scores["clean"] is None else f", {100 * scores['clean']:.1f} on the others"
    return [
        f"{exact + near:,} of {overlap['examples']:,} texts stand in the corpus too ({kinds}): {overlap['metric']} "
        f"{100 * scores['overlapping']:.1f} on these{clean}"
    ]
