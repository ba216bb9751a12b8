import math

import pytest

from peft_rag.explanation.words import effect_in_words, strongest_first, trace
from peft_rag.prediction import NeighbourShown, Prediction


def passage(effect, name="d", labels=("a",), without=("a",)):
    return NeighbourShown(name, f"text of {name}", labels, 0.5, 0.2, effect, without)


def answered(*effects, probability=0.5, alone=("a",), without=("a",)):
    passages = tuple(passage(effect, f"d{place}", without=without) for place, effect in enumerate(effects))
    return Prediction(("a",), probability, passages, Prediction(alone, 0.4))


@pytest.mark.parametrize(
    ("probability", "effect", "sentence"),
    [
        (0.5, math.log(0.5 / 0.4), "20% less likely (40.0% instead of 50.0%)."),
        (0.4, math.log(0.4 / 0.5), "25% more likely (50.0% instead of 40.0%)."),
        (0.2, math.log(0.2 / 0.6), "3.0 times as likely (60.0% instead of 20.0%)."),
        (0.5, 0.006, "under 1% less likely (49.7% instead of 50.0%)."),
        (0.9, 12.0, "over 99% less likely (under 0.1% instead of 90.0%)."),
        (1.0, 0.0002, "just as likely."),
        (0.3, -0.0049, "just as likely."),
        (1 - 1e-9, 100.0, "over 99% less likely (under 0.1% instead of over 99.9%)."),
        (1e-9, 1.0, "63% less likely."),
        (1e-300, -900.0, "over a million times as likely (over 99.9% instead of under 0.1%)."),
    ],
)
def test_effects_are_told_as_changes_of_the_probability(probability, effect, sentence):
    answer = answered(effect, probability=probability)
    assert effect_in_words(answer, answer.neighbours[0]) == f"Without this passage the answer would be {sentence}"


def test_what_would_be_answered_instead_is_told_even_where_the_probability_stays():
    for effect in (0.0, 0.5):
        answer = answered(effect, without=("b", "c"))
        assert effect_in_words(answer, answer.neighbours[0]).endswith(" The model would answer “b” and “c”.")
    nothing = answered(0.5, without=())
    assert effect_in_words(nothing, nothing.neighbours[0]).endswith(" The model would answer none of the labels.")


def test_passages_stand_by_what_they_did_whichever_way_and_equals_closest_first():
    ranked = strongest_first(answered(0.1, -0.3, 0.0, 0.3, -0.1))
    assert [one.id for one in ranked] == ["d1", "d3", "d0", "d4", "d2"]


def test_the_trace_tells_both_answers_the_passage_that_mattered_and_the_sides():
    assert trace(answered(0.1, -math.log(2), 0.0, alone=("b",))) == [
        "From the text alone the model would answer “b” (40.0%).",
        "It looked up 3 passages; the closest to the text is passage 2, labelled “a”.",
        "Passage 1 mattered most, and spoke against the answer. Without it the answer would be 2.0 times as likely "
        "(over 99.9% instead of 50.0%).",
        "Of the 3, 1 spoke for the answer, 1 spoke against it and 1 made no difference to speak of.",
        "With all of them it answers “a” (50.0%), which is not what it would say from the text alone.",
    ]


def test_the_trace_of_one_passage_or_of_none_is_short():
    assert trace(answered(0.0)) == [
        "From the text alone the model would answer “a” (40.0%).",
        "It looked up 1 passage, labelled “a”.",
        "No passage by itself made a difference to speak of.",
        "With this passage it answers “a” (50.0%), the same as from the text alone.",
    ]
    assert trace(Prediction(("a",), 0.5)) == [
        "No passage took part: this is what the model answers from the text alone."
    ]
