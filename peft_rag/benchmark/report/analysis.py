"""What the rows of one data set say: values, intervals, ranks, comparisons, controls and leaks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from peft_rag.benchmark.report.cells import Setting
from peft_rag.benchmark.report.costs import costs_of
from peft_rag.benchmark.report.judging import CONTROLS, Judgement, judge, mcnemar_by_seed, retrieves
from peft_rag.benchmark.report.leaks import Leaks, leaks_of
from peft_rag.benchmark.report.machines import machine_names, machines_of
from peft_rag.benchmark.report.results import MISSING, NONE, Results, Row, RowKey
from peft_rag.evaluation.bootstrap import Score
from peft_rag.evaluation.comparison import SAME, Comparison
from peft_rag.evaluation.mcnemar import McNemar
from peft_rag.evaluation.ranks import Placing, placings, ranks
from peft_rag.evaluation.spread import Spread, spread

_EQUAL = 1e-6


@dataclass(frozen=True)
class Result:
    """One row and what it says.

    Attributes:
        row: whose cells it rests on.
        metrics: each score by name, over the seeds that are done.
        quality: the metric that the answers add up to, with its interval over seeds and examples; None if no seed is
            done.
        clean: the same without test examples that leaked; None where there is no audit.
        rank: within the setting, failures last; None where seeds are still missing.
        against_reference: the row against the reference row; None for that row itself.
        against_best: the row against the best row; None for that row itself.
        against_none: the row against its method without retrieval.
        mcnemar: the row against the reference row, seed by seed.
        controls: the metric of each arm of a row that retrieves, by name.
        against_controls: the retrieved arm against each other arm.
        costs: by name, averaged over seeds.
        machines: short names of those it was run on; none where the whole result set was run on one.
    """

    row: Row
    metrics: Mapping[str, Spread]
    quality: Score | None
    clean: float | None
    rank: float | None
    against_reference: Comparison | None
    against_best: Comparison | None
    against_none: Comparison | None
    mcnemar: Mapping[int, McNemar]
    controls: Mapping[str, Spread]
    against_controls: Mapping[str, Comparison]
    costs: Mapping[str, float]
    machines: tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """The rows of one setting: complete ones best first, then those that lack seeds, then those without any result.

    Attributes:
        setting: data set, shots and backbone.
        label: its name for people.
        metric: that rows are ranked by.
        examples: in the test split; 0 where no cell is done.
        seeds: of the setting.
        plain_scores: names of scores that are no shares, and not written in percent.
        written: to how many test examples texts were written, whose scores rest on these alone; 0 for none.
        results: one a row.
        reference: the row that all others are compared with; None where it has no result.
        leaks: test examples that stand in training data or corpus.
    """

    setting: Setting
    label: str
    metric: str
    examples: int
    seeds: tuple[int, ...]
    plain_scores: frozenset[str]
    written: int
    results: tuple[Result, ...]
    reference: RowKey | None
    leaks: Leaks

    @property
    def best(self) -> Result | None:
        """The first row that has all its seeds."""
        return next((result for result in self.results if result.row.complete), None)

    @property
    def metric_is_tallied(self) -> bool:
        """Whether the metric is what the answers add up to, so that their interval is the metric's."""
        return all(
            abs(result.metrics[self.metric].mean - result.quality.value) < _EQUAL
            for result in self.results
            if result.quality is not None
        )

    @property
    def alike(self) -> list[Result]:
        """The complete rows that cannot be told apart from the best one, itself the first."""
        others = [one for one in self.results if one.row.complete and one.against_best is not None]
        first = [] if self.best is None else [self.best]
        return first + [one for one in others if one.against_best and one.against_best.verdict == SAME]


def analyse(results: Results, reference: Mapping[str, str]) -> list[Table]:
    """Work out one table for each setting.

    Args:
        results: of one suite.
        reference: ``method`` and ``fusion`` of the row that all are compared with; `head` without retrieval by default.
    """
    wanted = RowKey(reference.get("method", "head"), reference.get("fusion", NONE))
    return [_table(results, setting, wanted) for setting in results.settings]


def overall_ranks(tables: Sequence[Table]) -> dict[RowKey, Placing]:
    """Return the ranks in each data set of the rows that all of them have without a missing seed, best first."""
    return placings([_rankable(table.metric, [one.row for one in table.results]) for table in tables])


def _table(results: Results, setting: Setting, wanted: RowKey) -> Table:
    rows = [row for row in results.rows if row.setting == setting]
    done = [row for row in rows if row.done]
    first = done[0].cells[done[0].done[0]] if done else None
    metric = first.main_metric if first else "accuracy"
    placed = ranks(_rankable(metric, rows))
    ordered = sorted(
        rows, key=lambda row: (not row.complete, not row.done, -round(_metric(row, metric).mean, 9) if row.done else 0)
    )
    known = {row.key: row for row in ordered if row.done}
    reference = wanted if wanted in known else None
    best = ordered[0].key if ordered[0].complete else None
    judgement, leaks = judge(known, reference, best), leaks_of(done)
    names = machine_names(results.cells)
    found = [_result(row, placed.get(row.key), known.get(wanted), judgement, leaks, names) for row in ordered]
    return Table(
        setting=setting,
        label=results.label(setting),
        metric=metric,
        examples=len(first.targets) if first else 0,
        seeds=rows[0].seeds,
        plain_scores=first.plain_scores if first else frozenset(),
        written=first.written if first else 0,
        results=tuple(found),
        reference=reference,
        leaks=leaks,
    )


def _rankable(metric: str, rows: Sequence[Row]) -> dict[RowKey, float | None]:
    """Return the values that rows are ranked by: None for rows with a failure, and no entry for unfinished ones."""
    values: dict[RowKey, float | None] = {}
    for row in rows:
        if row.complete:
            values[row.key] = _metric(row, metric).mean
        elif MISSING not in row.failures:
            values[row.key] = None
    return values


def _metric(row: Row, name: str) -> Spread:
    return spread([row.arm(seed).scores[name] for seed in row.done])


def _result(
    row: Row,
    rank: float | None,
    reference: Row | None,
    judgement: Judgement,
    leaks: Leaks,
    machines: Mapping[str, str],
) -> Result:
    key = row.key
    return Result(
        row=row,
        metrics={name: _metric(row, name) for name in (row.arm(row.done[0]).scores if row.done else ())},
        quality=judgement.quality.get(key),
        clean=leaks.clean_value(row),
        rank=rank,
        against_reference=judgement.against_reference.get(key),
        against_best=judgement.against_best.get(key),
        against_none=judgement.against_none.get(key),
        mcnemar=mcnemar_by_seed(row, reference),
        controls=_controls(row),
        against_controls={arm: one for (owner, arm), one in judgement.against_controls.items() if owner == key},
        costs=costs_of(row),
        machines=machines_of(row, machines),
    )


def _controls(row: Row) -> dict[str, Spread]:
    """Return the metric of each arm of a row that retrieves."""
    found = {}
    for arm in CONTROLS if retrieves(row) else ():
        seeds = [seed for seed in row.done if arm in row.cells[seed].arms]
        if seeds:
            found[arm] = spread([row.cells[seed].arms[arm].value for seed in seeds])
    return found
