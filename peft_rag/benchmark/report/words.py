"""Numbers and findings in plain words, the same in every output."""

from __future__ import annotations

from collections.abc import Sequence

from peft_rag.benchmark.report.analysis import Result, Table
from peft_rag.benchmark.report.cells import Setting
from peft_rag.benchmark.report.costs import BY_NAME
from peft_rag.evaluation.comparison import BETTER, SAME, WORSE, Comparison
from peft_rag.evaluation.spread import Spread

NOTHING = "–"
_THOUSAND = 1000.0
_MINUTE = 60.0


def seeds_in_words(count: int) -> str:
    """Say how many seeds a table rests on, and what a single one leaves open.

    >>> seeds_in_words(3)
    '3 seeds'
    """
    if count == 1:
        return "1 seed, so that intervals tell of other test examples, but not of other draws of the training examples"
    return f"{count} seeds"


EXPLANATIONS = (
    (
        "mean ± deviation",
        "Mean and standard deviation over seeds. A seed decides which examples are drawn, how weights begin, and the "
        "order of training.",
    ),
    (
        "interval",
        "The 95% interval of the mean: test examples are drawn anew, the same ones for all rows, and the seeds' part "
        "has the width that so few seeds allow. The mean over all test examples of the kind and all seeds lies in such "
        "an interval 95 times of 100; that of another test split of this size varies once more.",
    ),
    (
        "better, worse, no difference",
        "Both rows answer the same examples, so they are compared example by example. The difference is in percentage "
        "points with its interval; p is corrected by Holm's method over all comparisons of the same kind in the table. "
        "“No difference” means that these data cannot tell the rows apart, and the interval says how far apart they "
        "may still be.",
    ),
    (
        "rank",
        "1 is the best row of a data set. A row of which a run failed or diverged comes last; a row of which runs are "
        "missing has no rank. Average ranks are over data sets, among the rows that all of them have.",
    ),
    (
        "without leaks",
        "The score on the test examples that stand neither in the training data nor in the corpus, be it word for word "
        "or nearly.",
    ),
    (
        "controls",
        "The same trained models with other neighbours: none (off), documents drawn at random, documents with their "
        "labels shuffled, documents that bear the right label (oracle), and words without content of equal length "
        "(filler). Retrieval is worth something where “retrieved” beats these.",
    ),
    (
        "front",
        "The dotted line joins the rows that no row beats: none is as cheap and better, or as good and cheaper. Hollow "
        "marks lack runs and are not on it.",
    ),
    (
        "costs",
        "Measured on the trained model, averaged over seeds. A row without retrieval that shares its training with a "
        "row with retrieval shares its peak memory too. Where machines differ, a number says which one a row was run "
        "on: times and memory compare rows of one machine alone.",
    ),
)


def percent(value: float | None) -> str:
    """Write a share in percent.

    >>> percent(0.9234), percent(None)
    ('92.3', '–')
    """
    return NOTHING if value is None else f"{100 * value:.1f}"


def with_deviation(spread: Spread, *, share: bool = True) -> str:
    """Write mean and deviation, in percent if they are shares.

    >>> with_deviation(Spread(0.9, 0.0123, 3)), with_deviation(Spread(0.9, None, 1))
    ('90.0 ± 1.2', '90.0')
    >>> with_deviation(Spread(12.34, 0.5, 3), share=False)
    '12.3 ± 0.5'
    """
    scale = 100 if share else 1
    mean = f"{scale * spread.mean:.1f}"
    return mean if spread.deviation is None else f"{mean} ± {scale * spread.deviation:.1f}"


def amount(value: float | None, unit: str) -> str:
    """Write a cost with the unit that fits its size.

    >>> amount(78_000, "count"), amount(319_000, "bytes"), amount(75, "seconds"), amount(None, "bytes")
    ('78k', '319 kB', '75 s', '–')
    """
    if value is None:
        return NOTHING
    if unit == "seconds":
        return f"{value / _MINUTE:.1f} min" if value >= 2 * _MINUTE else f"{_three(value)} s"
    if unit == "milliseconds":
        return f"{_three(value)} ms"
    size, prefixes = value, ["", "k", "M", "G", "T"]
    while size >= _THOUSAND and len(prefixes) > 1:
        size, prefixes = size / _THOUSAND, prefixes[1:]
    return f"{_three(size)} {prefixes[0]}B" if unit == "bytes" else f"{_three(size)}{prefixes[0]}"


def cost(result: Result, name: str) -> str:
    """Write one of a row's costs."""
    return amount(result.costs.get(name), BY_NAME[name].unit)


def points(comparison: Comparison | None) -> str:
    """Write a comparison in a table's cell: the verdict and its numbers."""
    return NOTHING if comparison is None else str(comparison)


def setting_name(setting: Setting) -> str:
    """Return a name for files and anchors, of letters, digits and hyphens only."""
    shots = f"-{setting.shots}shot" if setting.shots else ""
    raw = f"{setting.dataset}{shots}-{setting.backbone}"
    return "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in raw).strip("-").lower()


def findings(table: Table) -> list[str]:
    """Say what a table says: which row comes first, what does as well for less, and whether retrieval helps."""
    best = table.best
    if best is None:
        return ["No row has all its seeds yet."]
    first = f"{best.row.label} comes first with {with_deviation(best.metrics[table.metric])}% {table.metric}"
    if best.against_reference is not None and table.reference is not None:
        first += f"; against {table.reference.label} it is {_as_clause(best.against_reference)}"
    missing = "No row is compared with a reference: the one that the suite names, or head, has no result here."
    unreferred = [missing] if table.reference is None and len(table.results) > 1 else []
    return [first + ".", *unreferred, *_alike(table), *_retrieval(table), *_written(table), *_lacking(table)]


def _alike(table: Table) -> list[str]:
    rows = table.alike[1:]
    if not rows:
        return ["Every other row is worse than it, or cannot be compared yet."]
    names = _and([one.row.label for one in rows])
    sentence = f"These data cannot tell it apart from {names}."
    sized = [one for one in table.alike if "trainable_parameters" in one.costs]
    smallest = min(sized, key=lambda one: one.costs["trainable_parameters"], default=None)
    if smallest is not None and smallest is not table.best:
        trained = cost(smallest, "trainable_parameters")
        sentence += f" Of these, {smallest.row.label} trains the fewest parameters ({trained})."
    return [sentence]


def _retrieval(table: Table) -> list[str]:
    """Say for each fusion which methods it helps, harms, and does neither."""
    sentences = []
    for fusion in dict.fromkeys(one.row.key.fusion for one in table.results if one.against_none):
        verdicts: dict[str, list[str]] = {BETTER: [], WORSE: [], SAME: []}
        for one in table.results:
            if one.row.key.fusion == fusion and one.against_none:
                by = f"{100 * one.against_none.difference.value:+.1f}"
                verdicts[one.against_none.verdict].append(f"{one.row.key.method} ({by})")
        words = {BETTER: "helps", WORSE: "harms", SAME: "makes no difference beyond the noise for"}
        said = [f"{words[verdict]} {_and(names)}" for verdict, names in verdicts.items() if names]
        sentences.append(f"Retrieval by {fusion} {'; '.join(said)}, in points against the same method without.")
    return sentences


def _written(table: Table) -> list[str]:
    if not table.written:
        return []
    return [f"Scores of written texts rest on the first {table.written:,} test examples, {table.metric} on all."]


def _lacking(table: Table) -> list[str]:
    lacking = [f"{one.row.label} ({one.row.shortfall})" for one in table.results if one.row.shortfall]
    return [f"Runs are missing or did not end well: {_and(lacking)}."] if lacking else []


def _as_clause(comparison: Comparison) -> str:
    text = str(comparison)
    return f"no different ({text.partition('(')[2]}" if comparison.verdict == SAME else text


def _and(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _three(value: float) -> str:
    """Write a number with three figures, and no zero after its point.

    >>> _three(0.801), _three(22.7), _three(319.2), _three(0)
    ('0.8', '22.7', '319', '0')
    """
    if value >= 99.95 or value == 0:
        return f"{value:.0f}"
    text = f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"
    return text.rstrip("0").rstrip(".")
