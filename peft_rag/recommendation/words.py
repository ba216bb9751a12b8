"""What a search found, in words: the reasons for the method, and a table of all that was tried."""

from __future__ import annotations

from collections.abc import Iterator

from peft_rag.benchmark.report.words import NOTHING, amount, percent
from peft_rag.benchmark.results import DONE
from peft_rag.evaluation.comparison import BETTER, SAME, WORSE, Comparison, as_family
from peft_rag.recommendation.candidates import with_fusion
from peft_rag.recommendation.choice import LEAST_DISAGREEMENTS, Choice, Standing, against
from peft_rag.recommendation.report import Report, ranked
from peft_rag.recommendation.trial import Answered

_PLENTY = 200


def caution(examples: int) -> list[str]:
    """Say how fine a difference so many validation examples can show; nothing where they are plenty.

    >>> caution(1000)
    []
    """
    if examples >= _PLENTY:
        return []
    return [
        f"note: validation has {examples} examples, which cannot tell methods apart that differ on fewer than "
        f"{LEAST_DISAGREEMENTS} of them ({100 * LEAST_DISAGREEMENTS / examples:.0f} points); among such the smallest "
        "is taken. More of them (--validation FILE, or a larger --validation_share) see finer differences."
    ]


def in_words(report: Report) -> list[str]:
    """Return the report as a person reads it, in a terminal or as Markdown."""
    left_out = [f"- {one.label}, {one.why}" for one in report.surveyed.dropped]
    return [
        f"# Recommended: {_chosen(report.choice)}",
        "",
        *(f"- {reason}" for reason in reasons(report)),
        "",
        "What was tried: a rung trains its candidates anew, the better go on to the next. Scores are in percent on "
        "validation, in the last rung that a candidate reached; brackets above are 95% intervals.",
        "",
        *table(report),
        *(["", "What was left out:", "", *left_out] if left_out else []),
        "",
        "The final run again, with an output of your choice:",
        "",
        f"    {report.command}",
    ]


def reasons(report: Report) -> Iterator[str]:
    """Say in sentences why this method with these settings, why this fusion, and what to expect of it."""
    choice = report.choice
    yield _scores(report)
    yield from _smaller_rather_than_best(choice, report.validation)
    yield from _fusion(choice, report.validation)
    yield from _other_methods(report)
    if report.final.test:
        after = report.metrics["arms"].get("with_retrieval", report.metrics["arms"]["without_retrieval"])[report.metric]
        yield (
            f"On the {report.metrics['test_examples']:,} test examples, which nothing was chosen by, it reaches "
            f"{percent(after['value'])}% {report.metric}, and on all of their kind between {percent(after['low'])} "
            f"and {percent(after['high'])} (95% interval)."
        )
    else:
        yield "No test split was given, so no number here is free of the choices made by it. Name one with --test."
    yield from (f"Time was short: {note}." for note in report.found.notes)


def table(report: Report) -> list[str]:
    """Return a table of every candidate: how far it came, its scores on validation, bytes and seconds."""
    found = ranked(report.found)
    fusions = list(dict.fromkeys(name for one in found for name in one.candidate.fusions))
    heads = [f"{report.metric} {with_fusion(name)}" for name in fusions]
    rows = [["candidate", "rung", "steps", *heads, "artefact", "time", "remark"]]
    for one in found:
        scores = [percent(one.last.answers[name].score) if name in one.last.answers else NOTHING for name in fusions]
        remark = "recommended" if one.candidate is report.choice.standing.candidate else ""
        if one.last.status != DONE:
            remark = f"{one.last.status}: {one.last.error}"
        seconds = amount(sum(trial.seconds for trial in one.trials), "seconds")
        size = amount(one.candidate.size, "bytes")
        rows.append([one.candidate.label, str(len(one.trials)), str(one.last.steps), *scores, size, seconds, remark])
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    rows.insert(1, ["-" * width for width in widths])
    return [f"| {' | '.join(text.ljust(width) for text, width in zip(row, widths, strict=True))} |" for row in rows]


def _chosen(choice: Choice) -> str:
    return f"{choice.standing.candidate.label}; {with_fusion(choice.fusion)}"


def _scores(report: Report) -> str:
    choice, finalists = report.choice, len(report.found.finalists)
    steps = f"{report.found.rungs[-1].steps} steps"
    among = (
        f"the best of the {finalists} finalists" if choice.standing is choice.best else f"one of {finalists} finalists"
    )
    return (
        f"It gets {percent(choice.answered.score)}% {report.metric} on the {report.validation:,} validation examples "
        f"after {steps}, {among}. Its artefact takes {report.metrics['artefact_bytes']:,} bytes."
    )


def _smaller_rather_than_best(choice: Choice, examples: int) -> Iterator[str]:
    """Say what the best finalist and the smaller ones differ by, which decides which of them is taken."""
    best = choice.best.candidate
    for rival in choice.rivals:
        other = rival.second.candidate
        sizes = f"{other.label} is smaller ({amount(other.size, 'bytes')} against {amount(best.size, 'bytes')})"
        if rival.comparison.verdict == SAME:
            end = "so it is taken" if rival.second is choice.standing else "but a smaller one still is taken"
            yield (
                f"{best.label} and {other.label} do not differ beyond the noise on {examples:,} validation examples "
                f"({_numbers(rival.comparison)}); {sizes}, {end}."
            )
        else:
            yield f"{sizes}, but {best.label} is better, by {_numbers(rival.comparison)} on validation."


def _fusion(choice: Choice, examples: int) -> Iterator[str]:
    """Say what each richer fusion gains over the simplest, which decides which of them is taken."""
    for doubt in choice.by_fusion:
        richer, simpler, gain = with_fusion(doubt.first), with_fusion(doubt.second), _numbers(doubt.comparison)
        if doubt.comparison.verdict == BETTER:
            yield (
                f"{richer.capitalize()} it is better than {simpler}, by {gain} on {examples:,} validation examples, "
                "each answered by a fusion fitted to the others."
            )
        elif doubt.comparison.verdict == SAME:
            yield f"It does not differ {richer} beyond the noise ({gain}), so the simpler model {simpler} is taken."
        else:
            yield f"It is worse {richer} than {simpler} ({gain})."


def _other_methods(report: Report) -> Iterator[str]:
    """Compare the chosen with the best of every other method, where both had been trained for as long."""
    taken = report.choice.standing
    pairs: list[tuple[Standing, Comparison]] = []
    judged_above = (taken, report.choice.best, *(rival.second for rival in report.choice.rivals))
    seen = {standing.candidate.method for standing in judged_above}
    for other in ranked(report.found):
        rung = len(other.trials)
        if other.candidate.method in seen or not other.alive or rung > len(taken.trials):
            continue
        seen.add(other.candidate.method)
        ours = taken.trials[rung - 1].answers[report.choice.fusion]
        pairs.append((other, against(ours, _comparable(other, report.choice.fusion))))
    if not pairs:
        return
    judged = as_family([comparison for _, comparison in pairs])
    for verdict, words in (
        (BETTER, "It is better than"),
        (SAME, "On validation it cannot be told from"),
        (WORSE, "It is worse than"),
    ):
        named = [
            f"{other.candidate.label} ({_numbers(comparison)}, after {other.last.steps} steps each; "
            f"{amount(other.candidate.size, 'bytes')})"
            for (other, _), comparison in zip(pairs, judged, strict=True)
            if comparison.verdict == verdict
        ]
        if named:
            yield f"{words} {'; '.join(named)}."


def _comparable(standing: Standing, fusion: str) -> Answered:
    """Return what a candidate answered with a fusion, or with its best where it was not trained for that one."""
    answers = standing.last.answers
    return answers[fusion] if fusion in answers else max(answers.values(), key=lambda one: one.score)


def _numbers(comparison: Comparison) -> str:
    """Write a difference in points with its interval.

    >>> from peft_rag.evaluation.bootstrap import Score
    >>> _numbers(Comparison(Score(0.01, -0.012, 0.03), 0.4, 0.4, 1))
    '+1.0 points [-1.2, +3.0]'
    """
    value, low, high = (
        100 * part for part in (comparison.difference.value, comparison.difference.low, comparison.difference.high)
    )
    return f"{value:+.1f} points [{low:+.1f}, {high:+.1f}]"
