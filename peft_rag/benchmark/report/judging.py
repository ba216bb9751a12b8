"""Intervals and comparisons of the rows of one setting, all drawn over the same examples."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from peft_rag.benchmark.report.cells import OFF, RETRIEVED
from peft_rag.benchmark.report.results import NONE, Row, RowKey, stacked
from peft_rag.evaluation.bootstrap import Score
from peft_rag.evaluation.comparison import Comparison, as_family, compare
from peft_rag.evaluation.mcnemar import McNemar, mcnemar
from peft_rag.evaluation.statistics import MEAN
from peft_rag.evaluation.tallies import Drawn, difference
from peft_rag.evaluation.two_level import bootstrap_rows, interval

CONTROLS = (OFF, RETRIEVED, "random", "shuffled", "oracle", "filler")

Place = tuple[RowKey, str]
Family = dict[Place, Comparison]


@dataclass(frozen=True)
class Judgement:
    """What the bootstrap says of a setting's rows; each family is corrected by itself.

    Attributes:
        quality: the metric that each row's answers add up to, with its interval.
        against_reference: each row against the reference row.
        against_best: each row against the best.
        against_none: each row against its method without retrieval.
        against_controls: what was retrieved against each control, by row and control.
    """

    quality: Mapping[RowKey, Score]
    against_reference: Mapping[RowKey, Comparison]
    against_best: Mapping[RowKey, Comparison]
    against_none: Mapping[RowKey, Comparison]
    against_controls: Mapping[Place, Comparison]


def judge(rows: Mapping[RowKey, Row], reference: RowKey | None, best: RowKey | None) -> Judgement:
    """Judge the rows of one setting.

    Args:
        rows: those with at least one seed done.
        reference: the row that all are compared with.
        best: the row that comes first.
    """
    own = {(key, ""): row.tallies() for key, row in rows.items()}
    families = [
        _pairs(rows, lambda key: reference),
        _pairs(rows, lambda key: best),
        _pairs(rows, lambda key: RowKey(key.method, NONE) if key.fusion != NONE else None),
        _control_pairs(rows),
    ]
    drawn = [*own.values(), *(one for family in families for one in family.values())]
    draws = iter(bootstrap_rows(drawn) if drawn else ())
    scores = {
        key: interval(float(one.scores.mean()), next(draws), one.scores.shape[1]) for (key, _), one in own.items()
    }
    judged = [{place: compare(one, next(draws)) for place, one in family.items()} for family in families]
    to_reference, to_best, to_none, to_controls = map(_corrected, judged)
    return Judgement(scores, _by_row(to_reference), _by_row(to_best), _by_row(to_none), to_controls)


def retrieves(row: Row) -> bool:
    """Whether a row's answers are those with what was retrieved, so that controls say something of it."""
    return set(row.arms.values()) == {RETRIEVED}


def mcnemar_by_seed(row: Row, reference: Row | None) -> dict[int, McNemar]:
    """Test a row against the reference row seed by seed; nothing where answers are not simply right or wrong."""
    found: dict[int, McNemar] = {}
    if reference is None or row.key == reference.key:
        return found
    for seed in _shared(row, reference):
        pair = np.stack([row.arm(seed).tallies, reference.arm(seed).tallies])
        if row.arm(seed).statistic is MEAN and np.isin(pair, (0.0, 1.0)).all():
            found[seed] = mcnemar(pair[0, :, 0] == 1.0, pair[1, :, 0] == 1.0)
    return found


def _pairs(rows: Mapping[RowKey, Row], other: Callable[[RowKey], RowKey | None]) -> dict[Place, Drawn]:
    """Return the differences of each row from another, over the seeds that both have."""
    found: dict[Place, Drawn] = {}
    for key, row in rows.items():
        partner = other(key)
        second = rows.get(partner) if partner is not None and partner != key else None
        if second is not None and (seeds := _shared(row, second)):
            found[key, ""] = difference(row.tallies(seeds), second.tallies(seeds))
    return found


def _control_pairs(rows: Mapping[RowKey, Row]) -> dict[Place, Drawn]:
    """Return the differences of what was retrieved from each control, within the same trained models."""
    found: dict[Place, Drawn] = {}
    for key, row in rows.items():
        for arm in CONTROLS:
            seeds = [seed for seed in row.done if arm in row.cells[seed].arms]
            if arm != RETRIEVED and retrieves(row) and seeds:
                control = stacked([row.cells[seed].arms[arm] for seed in seeds])
                found[key, arm] = difference(row.tallies(seeds), control)
    return found


def _shared(first: Row, second: Row) -> list[int]:
    return [seed for seed in first.done if seed in second.arms]


def _corrected(family: Family) -> Family:
    return dict(zip(family, as_family(list(family.values())), strict=True))


def _by_row(family: Family) -> dict[RowKey, Comparison]:
    return {key: comparison for (key, _), comparison in family.items()}
