"""The page of explained predictions, as text and in a real browser."""

import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise

import pytest

from peft_rag.explanation.page import MOST_TEXTS, About, page
from peft_rag.explanation.telling import Telling
from peft_rag.prediction import NeighbourShown, Prediction
from peft_rag.records import Record
from peft_rag.tasks.answers import Answer
from peft_rag.tasks.multiple_choice import MultipleChoice
from peft_rag.tasks.question_answering import QuestionAnswering
from peft_rag.tasks.text2text import Text2Text
from peft_rag.tasks.text_classification import TextClassification
from peft_rag.tasks.token_classification import TokenClassification
from tests.browser import EVIL, needs_browser, opened

ABOUT = About("mine", "questions.jsonl")
PICKING = TextClassification(labels=("fruit", "metal"))
EFFECTS = (0.05, -0.7, 0.0, 1.4, 0.2, -0.1, 0.3, 0.01, 0.02, -0.03)
LONG = "a word or two " * 100


def passages(effects=EFFECTS, text="a passage", labels=("fruit",)):
    return tuple(
        NeighbourShown(f"d{place}", f"{text} {place}", labels, 0.9 - place / 20, 0.1, effect, ("fruit",))
        for place, effect in enumerate(effects)
    )


def written(*asked, about=ABOUT, task=PICKING, reads=True):
    examples = [task.as_example(text, str(number)) for number, (text, _) in enumerate(asked)]
    return page(examples, [answer for _, answer in asked], about, Telling(task, reads))


ALONE = Prediction(("metal",), 0.25)
ASKED = [
    ("what grows here?", Prediction(("fruit",), 0.875, passages(), ALONE)),
    (EVIL, Prediction((EVIL,), 0.5, passages((0.4,), EVIL, (EVIL,)), Prediction((EVIL,), 0.4))),
    (LONG, Prediction((), 0.3, passages((0.4, 0.1), LONG, ()), Prediction(("a", "b"), 0.2))),
    ("nothing was found", Prediction(("fruit",), 1.0)),
]


class Elements(HTMLParser):
    """Collect the names and attributes of all elements."""

    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


def test_no_text_becomes_an_element_and_nothing_is_loaded():
    elements = Elements(written(*ASKED, about=About(EVIL, EVIL), reads=False)).found
    names = {name for name, _ in elements}
    assert not names & {"script", "img", "link", "iframe", "object", "base"}
    attributes = {key for _, given in elements for key in given}
    assert not attributes & {"style", "src", "srcset", "onerror", "onclick"}
    assert all(given["href"].startswith("#") for name, given in elements if name == "a")
    assert "http" not in re.sub("http-equiv", "", written(*ASKED))


def test_the_policy_allows_the_own_style_and_nothing_else():
    (policy,) = [given["content"] for _, given in Elements(written(*ASKED)).found if "http-equiv" in given]
    assert re.fullmatch(
        r"default-src 'none'; style-src 'sha256-[\w+/=]{44}'; base-uri 'none'; form-action 'none'", policy
    )


def test_a_page_of_many_texts_shows_the_first_and_says_how_many():
    many = [(f"text {number}", Prediction(("fruit",), 0.5)) for number in range(MOST_TEXTS + 20)]
    text = written(*many)
    assert text.count("<article") == MOST_TEXTS
    assert f"first {MOST_TEXTS} of {MOST_TEXTS + 20}" in text
    assert "first" not in written(*many[:3]).partition("<main")[0].partition("</style>")[2]


def test_how_the_model_uses_passages_is_said():
    assert "reads these passages together" in written(*ASKED)
    assert "labels of these passages then vote" in written(*ASKED, reads=False)


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "page.html"
    path.write_text(written(*ASKED), encoding="utf-8")
    return path.as_uri()


@needs_browser
@pytest.mark.parametrize(("width", "scheme"), [(1400, "light"), (1400, "dark"), (360, "light"), (360, "dark")])
def test_the_page_fits_and_has_its_style_under_its_own_policy(browser, address, width, scheme):
    with opened(browser, address, width, color_scheme=scheme) as shown:
        assert shown.evaluate("document.documentElement.scrollWidth") <= width
        paper = shown.evaluate("getComputedStyle(document.body).backgroundColor")
        assert paper == {"light": "rgb(251, 251, 249)", "dark": "rgb(20, 23, 26)"}[scheme]


@needs_browser
def test_answers_stand_beside_those_without_passages_with_bars_as_long_as_they_are_likely(browser, address):
    with opened(browser, address) as shown:
        for name, label, share in (("answer", "fruit 87.5%", 0.875), ("alone", "metal 25.0%", 0.25)):
            box = shown.locator(f"#text-1 .{name}")
            assert " ".join(box.locator("p").nth(1).inner_text().split()) == label
            bar, track = (box.locator(f"rect.{one}").bounding_box()["width"] for one in ("share", "track"))
            assert bar / track == pytest.approx(share, abs=0.01)


@needs_browser
def test_passages_stand_by_effect_with_bars_from_the_middle_to_their_side(browser, address):
    with opened(browser, address) as shown:
        cards = shown.locator("#text-1 .cards > li")
        assert cards.count() == len(EFFECTS)
        assert shown.locator("#text-1 .cards > li:visible").count() == 8
        shown.get_by_text("2 more passages, which mattered no more than these").click()
        assert shown.locator("#text-1 .cards > li:visible").count() == len(EFFECTS)
        strongest = sorted(EFFECTS, key=lambda effect: -abs(effect))
        for place, effect in enumerate(strongest):
            card = cards.nth(place)
            assert f"effect {effect:+.3f} nats".replace("-", "−") in card.inner_text()
            bar, middle, track = (card.locator(f"rect.{one}").bounding_box() for one in ("bar", "middle", "track"))
            assert bar["width"] / track["width"] == pytest.approx(abs(effect) / 1.4 / 2, abs=0.005)
            centre = middle["x"] + middle["width"] / 2
            if abs(effect) > 0.005:
                side = bar["x"] if effect > 0 else bar["x"] + bar["width"]
                assert side == pytest.approx(centre, abs=1)
                assert card.get_attribute("class") == ("for" if effect > 0 else "against")
        assert "Without this passage the answer would be 75% less likely (21.6% instead of 87.5%)" in (
            cards.first.inner_text()
        )


@needs_browser
def test_texts_are_text_and_long_ones_open(browser, address):
    with opened(browser, address) as shown:
        assert shown.locator("#text-2 blockquote").inner_text() == EVIL
        assert shown.locator("img, script").count() == 0
        whole = shown.locator("#text-3 blockquote details > p")
        assert not whole.is_visible()
        shown.locator("#text-3 blockquote summary").press("Enter")
        assert whole.inner_text().strip() == LONG.strip()
        assert not shown.locator("#text-3 blockquote summary > span").is_visible()


@needs_browser
def test_every_text_is_reached_from_the_list_and_headings_have_no_gaps(browser, address):
    with opened(browser, address) as shown:
        shown.keyboard.press("Tab")
        assert shown.evaluate("document.activeElement.textContent") == "Skip to the answers"
        for number in range(1, len(ASKED) + 1):
            assert shown.locator(f"nav a[href='#text-{number}']").count() == 1
            assert shown.locator(f"article#text-{number}").count() == 1
        levels = shown.evaluate("[...document.querySelectorAll('h1,h2,h3')].map(e => Number(e.tagName[1]))")
        assert levels[0] == 1
        assert all(after - before <= 1 for before, after in pairwise(levels))


TAGGING = TokenClassification(labels=("O", "B-person", "I-person", "B-place", "I-place"), words="letters")
NAMED = ("B-person", "O", "B-place", "I-place", "O")
TAGGED = Prediction(
    NAMED,
    0.8,
    (
        NeighbourShown("d1", "Bob saw Oslo", ("B-person", "O", "B-place"), 0.9, 0.3, 0.4, ("O", *NAMED[1:])),
        NeighbourShown("d2", "it rained", ("O", "O"), 0.8, 0.2, -0.1, ("O",) * 5),
        NeighbourShown("d3", EVIL, ("place",), 0.7, 0.1, 0.0, NAMED),
    ),
    Prediction(("O",) * 5, 0.6),
)
WRITTEN = Prediction(
    ("Every day it opens at nine,\nand closes at five.",),
    0.7,
    (
        NeighbourShown("p1", "When does the mill open?", ("At nine.",), 0.9, 0.5, 2.0, None),
        NeighbourShown("p2", "The mill closes at five.", (), 0.8, 0.5, 0.0, None),
    ),
    Prediction(("",), 0.1, tokens=1),
    tokens=14,
)


def plain(text):
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", text))


def test_named_parts_are_marked_in_the_text_and_in_passages_and_told_by_name():
    text = written(("Ada left New York.", TAGGED), task=TAGGING, reads=False)
    assert "<p><mark>Ada<span>person</span></mark> left <mark>New York<span>place</span></mark>.</p>" in text
    assert "<p><mark>Bob<span>person</span></mark> saw <mark>Oslo<span>place</span></mark></p>" in text
    told = plain(text)
    assert "The answer Ada person New York place 80.0%" in told
    assert "without any passage nothing is named 60.0%" in told
    assert "From the text alone the model would answer that nothing is named (60.0%)." in told
    assert "Passage 1 , naming Bob (person), Oslo (place)" in told
    assert "The model would answer “New York” (place)." in told
    assert "Passage 2 , naming nothing" in told
    assert "B-person" not in text
    assert "the most similar words of these passages then vote" in told
    assert "window.harmed" in text
    assert "<img" not in text


def test_written_texts_are_shown_as_texts_and_their_likelihood_by_token():
    task = Text2Text(tokenizer=object())
    text = written(("When does it open?", WRITTEN), task=task)
    told = plain(text)
    assert '<strong class="written">Every day it opens at nine,\nand closes at five.</strong>' in text
    assert "70.0% a token" in told
    assert "From the text alone the model would answer an empty text (10.0% a token)." in told
    assert "without any passage an empty text 10.0% a token" in told
    assert "Passage 1 , with the answer “At nine.” spoke for the answer" in told
    assert "Without this passage the answer would be 86% less likely." in told
    assert "Passage 2 no difference" in told
    assert "the same answer was judged again" in told
    assert "How likely the model held each piece (token)" in told
    assert "pieces that stand at the most similar places" in plain(written(("x", WRITTEN), task=task, reads=False))


@needs_browser
def test_marks_and_written_texts_fit_a_narrow_screen(browser, tmp_path):
    asked = {"tags.html": (TAGGING, TAGGED), "texts.html": (Text2Text(tokenizer=object()), WRITTEN)}
    for name, (task, answer) in asked.items():
        path = tmp_path / name
        path.write_text(written(("Ada left New York.", answer), task=task), encoding="utf-8")
        with opened(browser, path.as_uri(), 360) as shown:
            assert shown.evaluate("document.documentElement.scrollWidth") <= 360
            if task is TAGGING:
                assert shown.locator("#text-1 blockquote mark").all_inner_texts() == ["Adaperson", "New Yorkplace"]
            else:
                assert shown.locator("#text-1 .answer strong").inner_text() == WRITTEN.labels[0]


def test_answers_out_of_the_text_itself_are_told_in_its_words_and_not_by_their_number():
    task = QuestionAnswering(context_words=24)
    asked = task.as_example("where?\nIt lies by Paris, near Rome.", "1")
    paris, rome = str(Answer("Paris", 11)), str(Answer("Rome", 23))
    told = NeighbourShown("d", "In Rome.", (str(Answer("Rome", 3)),), 0.9, 1.0, 0.4, (rome,))
    answer = Prediction((paris,), 0.8, (told,), Prediction((), 0.6), read=asked)
    page_of = page([replace(asked, text="where?\n")], [answer], ABOUT, Telling(task, True))
    assert "@" not in re.sub(r"<style>.*</style>", "", page_of, flags=re.DOTALL)
    for said in (">Paris</strong>", "The model would answer “Rome”", "with the answer “Rome”", "It lies by Paris"):
        assert said in page_of
    assert ">The text holds no answer</strong>" in page_of
    assert "From the text alone the model would answer that the text holds no answer" in page_of


@pytest.mark.parametrize("by", ["state", "likelihood"])
def test_choices_are_told_by_what_they_say(by):
    task = MultipleChoice(by=by, labels=("A", "B"))
    record = Record({"question": "what?", "choices": ["a stone", "a river"], "label": 1}, "data/a.jsonl", 7)
    (example,) = task.read([record])
    labels = ("B",) if by == "state" else ("a river",)
    told = NeighbourShown("d", "On rivers.", (), 0.9, 1.0, 0.4, labels)
    shown = page([example], [Prediction(labels, 0.8, (told,))], ABOUT, Telling(task, True))
    assert ">a river</strong>" in shown
    assert "it answers “a river”" in shown
