"""The page of explained predictions: one HTML file without a script, for a reader who knows nothing of the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from peft_rag.explanation.telling import Parts, Telling
from peft_rag.explanation.words import (
    Voice,
    beginning,
    count,
    effect_in_words,
    in_words,
    likely,
    stance,
    strongest_first,
    trace,
)
from peft_rag.pages.document import document, static
from peft_rag.pages.markup import Markup, element, fragment
from peft_rag.prediction import NeighbourShown, Prediction
from peft_rag.tasks.base import Example

MOST_TEXTS = 100
"""Texts shown at most, so that a page of any file opens at once."""

_PASSAGES_AT_FIRST = 8
_LONG_TEXT, _BEGINNING = 700, 400
_LEAST_SCALE = 0.1
_STANCES = {"for": "spoke for the answer", "against": "spoke against it", "nothing": "no difference"}


@dataclass(frozen=True)
class About:
    """Where the predictions of a page come from.

    Attributes:
        model: name of the artefact.
        data: name of the file of texts.
    """

    model: str
    data: str


def page(examples: Sequence[Example], answers: Sequence[Prediction], about: About, telling: Telling) -> str:
    """Return explained predictions as HTML, the first `MOST_TEXTS` of them.

    Args:
        examples: what was asked.
        answers: one an example, with their neighbours.
        about: where they come from.
        telling: how answers of their task are told.
    """
    asked = list(zip(examples, answers, strict=True))[:MOST_TEXTS]
    shown = [(answer.read or example, answer) for example, answer in asked]
    return document(
        f"Why {about.model} answered as it did",
        element("a", "Skip to the answers", href="#answers", class_="skip"),
        _header(len(examples), len(shown), about, telling),
        element(
            "main",
            _contents(shown, telling) if len(shown) > 1 else None,
            *(_answered(number, example, answer, telling) for number, (example, answer) in enumerate(shown, start=1)),
            _meanings(telling),
            id="answers",
        ),
        element("footer", element("p", f"Answers of {about.model} to {about.data}, explained by peft-rag.")),
        style=static(__package__, "page.css"),
    )


def _header(texts: int, shown: int, about: About, telling: Telling) -> Markup:
    number = f"{shown:,}" if shown == texts else f"first {shown:,} of {texts:,}"
    facts = [("texts on this page", number), ("model", about.model), ("texts from", about.data)]
    return element(
        "header",
        element("p", "Predictions explained", class_="kicker"),
        element("h1", "Why the model answered as it did"),
        element(
            "p",
            "For each text you see the model’s answer, how likely the model holds it to be right, and the passages "
            f"that it looked up. {telling.way} To see which of them mattered, each was left out in turn, and "
            f"{telling.asked_again}: what then happens to the answer is the effect of that passage.",
            class_="lede",
        ),
        element(
            "dl", *(element("div", element("dd", value), element("dt", name)) for name, value in facts), class_="facts"
        ),
    )


def _contents(shown: Sequence[tuple[Example, Prediction]], telling: Telling) -> Markup:
    lines = (
        element(
            "li",
            element("a", beginning(example.text, 90), href=f"#text-{number}"),
            element("span", f"{telling.voice(example).answer(answer.labels)}, {likely(answer)}"),
        )
        for number, (example, answer) in enumerate(shown, start=1)
    )
    listed = element("details", element("summary", "All texts"), element("ol", *lines), open=len(shown) <= 10)
    return element("section", element("nav", listed, aria_label="All texts"), class_="contents")


def _answered(number: int, example: Example, answer: Prediction, telling: Telling) -> Markup:
    alone, voice = answer.without_retrieval, telling.voice(example)
    return element(
        "article",
        element("h2", f"Text {number}"),
        element("blockquote", _whole(example.text, telling.parts(example, answer.labels))),
        element(
            "div",
            _said("The answer", _heading(example, answer, telling), answer, "answer"),
            alone
            and _said("From the text alone, without any passage", _heading(example, alone, telling), alone, "alone"),
            class_="said",
        ),
        element("h3", "How the answer came about"),
        element("ol", *(element("li", step) for step in trace(answer, voice)), class_="trace"),
        _passages(answer, voice, telling) if answer.neighbours else None,
        id=f"text-{number}",
    )


def _heading(example: Example, answer: Prediction, telling: Telling) -> Markup:
    """Return an answer by itself: labels, parts of the text with what they are, or what was written."""
    if telling.task.generates:
        return element("strong", answer.labels[0] or "an empty text", class_="written")
    if not telling.task.votes:
        return element("strong", telling.taken(example, answer.labels) or "The text holds no answer", class_="written")
    if not telling.names:
        return element("strong", ", ".join(answer.labels) or in_words(()))
    parts = telling.parts(example, answer.labels)
    marks: list[object] = [
        fragment(_marked(example.text[slice(*span)], [((0, span[1] - span[0]), kind)]), " ") for span, kind in parts
    ]
    return element("strong", *(marks or ["nothing is named"]), class_="named")


def _said(title: str, heading: Markup, answer: Prediction, name: str) -> Markup:
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
            heading,
            " ",
            element("span", likely(answer)),
        ),
        bar,
        class_=name,
    )


def _passages(answer: Prediction, voice: Voice, telling: Telling) -> Markup:
    ranked = strongest_first(answer)
    scale = max(_LEAST_SCALE, abs(ranked[0].effect))
    cards = [_card(f"Passage {place}", answer, one, scale, voice, telling) for place, one in enumerate(ranked, start=1)]
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


def _card(title: str, answer: Prediction, one: NeighbourShown, scale: float, voice: Voice, telling: Telling) -> Markup:
    label = voice.document(one) or ("" if answer.tokens else "without a label")
    text = one.text or " ".join(one.labels)
    side = stance(one)
    effect = f"{one.effect:+.3f}".replace("-", "−")
    numbers = f"effect {effect} nats · similarity {one.score:.3f} · weight {100 * one.weight:.1f}%"
    return element(
        "li",
        element(
            "p",
            element("strong", title),
            f"{label and f', {label}'} ",
            element("span", _STANCES[side], class_="stance"),
            class_="title",
        ),
        element("div", _whole(text, telling.document_parts(one)), class_="passage"),
        _effect_bar(one.effect, scale),
        element("p", effect_in_words(answer, one, voice=voice), class_="effect"),
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


def _whole(text: str, parts: Parts) -> Markup:
    """Return a text with the parts of it that are named; of a long one the beginning, which opens into the whole."""
    if len(text) <= _LONG_TEXT:
        return element("p", _marked(text, parts))
    opening = element("summary", element("span", beginning(text, _BEGINNING)), element("b", "the whole text"))
    return element("details", opening, element("p", _marked(text, parts)))


def _marked(text: str, parts: Parts) -> Markup:
    """Mark parts of a text, each with what it is behind it."""
    shown: list[object] = []
    at = 0
    for (begin, end), kind in parts:
        shown += [text[at:begin], element("mark", text[begin:end], element("span", kind))]
        at = end
    return fragment(*shown, text[at:])


def _meanings(telling: Telling) -> Markup:
    entries = (fragment(element("dt", word), element("dd", meaning)) for word, meaning in telling.meanings)
    return element("section", element("h2", "What the numbers mean"), element("dl", *entries), id="meaning")
