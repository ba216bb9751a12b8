"""An explanation in plain words, for a reader who knows nothing of how the model works."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from peft_rag.prediction import NeighbourShown, Prediction

NO_DIFFERENCE = 0.005
"""Effects below that many nats, half a percent of the probability, are not spoken of."""

_MOST = 700.0
"""Nats beyond which e to their power is no float."""

MEANINGS = (
    (
        "Probability",
        "How likely the model holds its answer to be right. It is the model's own estimate, and can be wrong.",
    ),
    (
        "Effect",
        "What happens to the probability of the answer when one passage is left out and everything else stays: above "
        "zero the passage spoke for the answer, below zero against it. It is written in nats, the difference of the "
        "logarithms of both probabilities: 0.1 is about a tenth of the probability, 0.69 half of it.",
    ),
    ("Similarity", "How close a passage is to the text, as the search measures it; the closest were looked up."),
    (
        "Weight",
        "The share of the say that a passage was given. A passage of great weight may still have little effect, where "
        "the others, or the text itself, say the same.",
    ),
    (
        "What this does not tell",
        "Passages are left out one at a time. Two that say the same stand in for each other, so that each alone may "
        "seem to matter little.",
    ),
)


def in_words(labels: Sequence[str]) -> str:
    """Return labels as a reader sees them.

    >>> in_words(("river", "metal"))
    '“river” and “metal”'
    """
    return listed([f"“{label}”" for label in labels]) or "none of the labels"


def _labelled(one: NeighbourShown) -> str:
    return f"labelled {in_words(one.labels)}" if one.labels else ""


@dataclass(frozen=True)
class Voice:
    """How sentences speak of answers and of passages.

    Attributes:
        answer: puts predicted labels into words.
        document: says what a passage is labelled with; nothing if empty.
        in_numbers: whether the probability of an answer is that of all of it, so that it can be told how it changes.
    """

    answer: Callable[[Sequence[str]], str] = in_words
    document: Callable[[NeighbourShown], str] = _labelled
    in_numbers: bool = True


PICKED = Voice()
"""Of labels that are picked."""


def percent(probability: float) -> str:
    """Return a probability as a reader sees it; none is ever quite certain.

    >>> percent(0.8214), percent(0.99999), percent(1e-9)
    ('82.1%', 'over 99.9%', 'under 0.1%')
    """
    if probability >= 0.9995:
        return "over 99.9%"
    return f"{100 * probability:.1f}%" if probability >= 0.0005 else "under 0.1%"


def count(number: int, word: str) -> str:
    """Return a number of things.

    >>> count(1, "passage"), count(1200, "passage")
    ('1 passage', '1,200 passages')
    """
    return f"{number:,} {word}{'s' * (number != 1)}"


def stance(one: NeighbourShown) -> str:
    """Say whether a passage spoke ``for`` the answer, ``against`` it, or did ``nothing``."""
    if abs(one.effect) < NO_DIFFERENCE:
        return "nothing"
    return "for" if one.effect > 0 else "against"


def strongest_first(answer: Prediction) -> list[NeighbourShown]:
    """Return the passages by how much they mattered, whichever way; of equals the closest first."""
    return sorted(answer.neighbours, key=lambda one: -abs(one.effect))


def effect_in_words(
    answer: Prediction, one: NeighbourShown, passage: str = "this passage", voice: Voice = PICKED
) -> str:
    """Say what leaving a passage out would have done."""
    without = f"Without {passage} the answer would be"
    asked = one.labels_without is not None and one.labels_without != answer.labels
    other = f" The model would answer {voice.answer(one.labels_without or ())}." if asked else ""
    if stance(one) == "nothing":
        return f"{without} just as likely.{other}"
    before, after = percent(answer.probability), percent(min(1.0, answer.probability * _factor(one.effect)))
    numbers = f" ({after} instead of {before})" if before != after and voice.in_numbers else ""
    return f"{without} {_change(one.effect)}{numbers}.{other}"


def _factor(effect: float) -> float:
    """Return by how much a probability is multiplied when a passage of that effect, in nats, is left out."""
    return math.exp(min(-effect, _MOST))


def _change(effect: float) -> str:
    """Say how the probability changes when a passage of that effect, in nats, is left out."""
    factor = _factor(effect)
    if factor >= 1e6:
        return "over a million times as likely"
    if factor >= 2:
        return f"{factor:,.1f} times as likely"
    share = 100 * abs(factor - 1)
    rounded = "under 1" if share < 1 else "over 99" if share > 99 else f"{share:.0f}"
    return f"{rounded}% {'less' if effect > 0 else 'more'} likely"


def trace(answer: Prediction, voice: Voice = PICKED) -> list[str]:
    """Tell step by step how an answer came about, and which passage mattered."""
    ranked = strongest_first(answer)
    if not ranked:
        return ["No passage took part: this is what the model answers from the text alone."]
    steps = []
    alone = answer.without_retrieval
    if alone is not None:
        steps.append(f"From the text alone the model would answer {_said(alone, voice)}.")
    closest = max(answer.neighbours, key=lambda one: one.score)
    labelled = voice.document(closest)
    closest_one = f"; the closest to the text is passage {ranked.index(closest) + 1}" if len(ranked) > 1 else ""
    steps.append(f"It looked up {count(len(ranked), 'passage')}{closest_one}{labelled and f', {labelled}'}.")
    steps.append(_most(answer, ranked[0], voice))
    if len(ranked) > 1:
        steps.append(_sides(ranked))
    same = alone is not None and alone.labels == answer.labels
    compared = ", the same as from the text alone" if same else ", which is not what it would say from the text alone"
    steps.append(
        f"With {'this passage' if len(ranked) == 1 else 'all of them'} it answers {_said(answer, voice)}{compared}."
    )
    return steps


def likely(answer: Prediction) -> str:
    """Return how likely an answer is, as a reader sees it."""
    return f"{percent(answer.probability)}{' a token' if answer.tokens else ''}"


def _said(answer: Prediction, voice: Voice) -> str:
    return f"{voice.answer(answer.labels)} ({likely(answer)})"


def _most(answer: Prediction, one: NeighbourShown, voice: Voice) -> str:
    if stance(one) == "nothing":
        return "No passage by itself made a difference to speak of."
    side = "for" if one.effect > 0 else "against"
    return f"Passage 1 mattered most, and spoke {side} the answer. {effect_in_words(answer, one, 'it', voice)}"


def _sides(ranked: Sequence[NeighbourShown]) -> str:
    stances = [stance(one) for one in ranked]
    said = {"for": "spoke for the answer", "against": "spoke against it", "nothing": "made no difference to speak of"}
    counted = [f"{stances.count(side):,} {what}" for side, what in said.items() if side in stances]
    return f"Of the {len(ranked):,}, {listed(counted)}."


def beginning(text: str, length: int) -> str:
    """Return a text in one line, its beginning if it is longer than so many characters.

    >>> beginning("one  two three", 8)
    'one two …'
    """
    line = " ".join(text.split())
    return line if len(line) <= length else f"{line[:length].rsplit(' ', 1)[0]} …"


def listed(parts: Sequence[str]) -> str:
    """Return parts of a sentence as a list.

    >>> listed(["a", "b", "c"])
    'a, b and c'
    """
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)
