"""The page of explained predictions: one HTML file without a script, for a reader who knows nothing of the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from peft_rag.explanation.words import (
    MEANINGS,
    count,
    effect_in_words,
    in_words,
    percent,
    stance,
    strongest_first,
    trace,
)
from peft_rag.pages.document import document, static
from peft_rag.pages.markup import Markup, element, fragment
from peft_rag.prediction import NeighbourShown, Prediction

MOST_TEXTS = 100
"""Texts shown at most, so that a page of any file opens at once."""

_PASSAGES_AT_FIRST = 8
_LONG_TEXT, _BEGINNING = 700, 400
_LEAST_SCALE = 0.1
_STANCES = {"for": "spoke for the answer", "against": "spoke against it", "nothing": "no difference"}
_READS = "The model reads these passages together with the text."
_VOTES = "The model answers from the text; the labels of these passages then vote, and their vote is mixed in."


@dataclass(frozen=True)
class About:
    """Where the predictions of a page come from.

    Attributes:
        model: name of the artefact.
        data: name of the file of texts.
        reads_neighbours: whether the model reads passages, or lets them vote.
    """

    model: str
    data: str
    reads_neighbours: bool


def page(texts: Sequence[str], answers: Sequence[Prediction], about: About) -> str:
    """Return explained predictions as HTML, the first `MOST_TEXTS` of them.

    Args:
        texts: what was asked.
        answers: one a text, with their neighbours.
        about: where they come from.
    """
    shown = list(zip(texts, answers, strict=True))[:MOST_TEXTS]
    return document(
        f"Why {about.model} answered as it did",
        element("a", "Skip to the answers", href="#answers", class_="skip"),
        _header(len(texts), len(shown), about),
        element(
            "main",
            _contents(shown) if len(shown) > 1 else None,
            *(_answered(number, text, answer) for number, (text, answer) in enumerate(shown, start=1)),
            _meanings(),
            id="answers",
        ),
        element("footer", element("p", f"Answers of {about.model} to {about.data}, explained by peft-rag.")),
        style=static(__package__, "page.css"),
    )


def _header(texts: int, shown: int, about: About) -> Markup:
    number = f"{shown:,}" if shown == texts else f"first {shown:,} of {texts:,}"
    facts = [("texts on this page", number), ("model", about.model), ("texts from", about.data)]
    return element(
        "header",
        element("p", "Predictions explained", class_="kicker"),
        element("h1", "Why the model answered as it did"),
        element(
            "p",
            "For each text you see the model’s answer, how likely the model holds it to be right, and the passages "
            f"that it looked up. {_READS if about.reads_neighbours else _VOTES} To see which of them mattered, each "
            "was left out in turn, and the model was asked again: what then happens to the answer is the effect of "
            "that passage.",
            class_="lede",
        ),
        element(
            "dl", *(element("div", element("dd", value), element("dt", name)) for name, value in facts), class_="facts"
        ),
    )


def _contents(shown: Sequence[tuple[str, Prediction]]) -> Markup:
    lines = (
        element(
            "li",
            element("a", _beginning(text, 90), href=f"#text-{number}"),
            element("span", f"{in_words(answer.labels)}, {percent(answer.probability)}"),
        )
        for number, (text, answer) in enumerate(shown, start=1)
    )
    listed = element("details", element("summary", "All texts"), element("ol", *lines), open=len(shown) <= 10)
    return element("section", element("nav", listed, aria_label="All texts"), class_="contents")


def _answered(number: int, text: str, answer: Prediction) -> Markup:
    alone = answer.without_retrieval
    return element(
        "article",
        element("h2", f"Text {number}"),
        element("blockquote", _whole(text)),
        element(
            "div",
            _said("The answer", answer, "answer"),
            _said("From the text alone, without any passage", alone, "alone") if alone else None,
            class_="said",
        ),
        element("h3", "How the answer came about"),
        element("ol", *(element("li", step) for step in trace(answer)), class_="trace"),
        _passages(answer) if answer.neighbours else None,
        id=f"text-{number}",
    )


def _said(title: str, answer: Prediction, name: str) -> Markup:
    width = f"{100 * answer.probability:.2f}"
    bar = element(
        "svg",
        element("rect", class_="track", width="100", height="10"),
        element("rect", class_="share", width=width, height="10"),
        viewBox="0 0 100 10",
        preserveAspectRatio="none",
        aria_hidden="true",
    )
    return element(
        "div",
        element("p", title, class_="about"),
        element(
            "p",
            element("strong", ", ".join(answer.labels) or in_words(())),
            " ",
            element("span", percent(answer.probability)),
        ),
        bar,
        class_=name,
    )


def _passages(answer: Prediction) -> Markup:
    ranked = strongest_first(answer)
    scale = max(_LEAST_SCALE, abs(ranked[0].effect))
    cards = [_card(place, answer, one, scale) for place, one in enumerate(ranked, start=1)]
    first, rest = cards[:_PASSAGES_AT_FIRST], cards[_PASSAGES_AT_FIRST:]
    more = element(
        "details",
        element("summary", f"{count(len(rest), 'more passage')}, which mattered no more than these"),
        element("ol", *rest, class_="cards", start=len(first) + 1),
    )
    return fragment(
        element("h3", "What each passage did"),
        element("p", "The passage that mattered most stands first.", class_="about"),
        element("ol", *first, class_="cards"),
        more if rest else None,
    )


def _card(place: int, answer: Prediction, one: NeighbourShown, scale: float) -> Markup:
    label = f"labelled {in_words(one.labels)}" if one.labels else "without a label"
    side = stance(one)
    effect = f"{one.effect:+.3f}".replace("-", "−")
    numbers = f"effect {effect} nats · similarity {one.score:.3f} · weight {100 * one.weight:.1f}%"
    return element(
        "li",
        element(
            "p",
            element("strong", f"Passage {place}"),
            f", {label} ",
            element("span", _STANCES[side], class_="stance"),
            class_="title",
        ),
        element("div", _whole(one.text), class_="passage"),
        _effect_bar(one.effect, scale),
        element("p", effect_in_words(answer, one), class_="effect"),
        element("p", f"{numbers} · document {one.id}", class_="about"),
        class_=side,
    )


def _effect_bar(effect: float, scale: float) -> Markup:
    """Draw an effect from the middle: to the right for the answer, to the left against it."""
    length = 100 * min(1.0, abs(effect) / scale)
    drawn = element(
        "svg",
        element("rect", class_="track", width="200", height="10"),
        element("rect", x=f"{100 - length * (effect < 0):.2f}", width=f"{length:.2f}", height="10", class_="bar"),
        element("rect", class_="middle", x="99.7", width="0.6", height="10"),
        viewBox="0 0 200 10",
        preserveAspectRatio="none",
    )
    return element(
        "div", element("span", "against"), drawn, element("span", "for"), class_="effect-bar", aria_hidden="true"
    )


def _whole(text: str) -> Markup:
    """Return a text; of a long one the beginning, which opens into the whole."""
    if len(text) <= _LONG_TEXT:
        return element("p", text)
    opening = element("summary", element("span", _beginning(text, _BEGINNING)), element("b", "the whole text"))
    return element("details", opening, element("p", text))


def _beginning(text: str, length: int) -> str:
    line = " ".join(text.split())
    return line if len(line) <= length else f"{line[:length].rsplit(' ', 1)[0]} …"


def _meanings() -> Markup:
    entries = (fragment(element("dt", word), element("dd", meaning)) for word, meaning in MEANINGS)
    return element("section", element("h2", "What the numbers mean"), element("dl", *entries), id="meaning")
