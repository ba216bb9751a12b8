import random
import string

import numpy as np
import pytest

from peft_rag.errors import ShapeError
from peft_rag.evaluation.answers import answer_scores, exact_matches, normalised, token_f1s

WORDS = ["The", "a", "an", "cat", "Cat,", "dog", "dog's", "the-end", "(42)", "theatre", "  ", "ant"]


def plain_tokens(text):
    """Go through the characters one by one, then drop articles."""
    kept = "".join(character for character in text.lower() if character not in string.punctuation)
    return [word for word in kept.split() if word not in ("a", "an", "the")]


def plain_scores(prediction, references):
    answer = plain_tokens(prediction)
    accepted = [tokens for tokens in map(plain_tokens, references) if tokens] or [[]]
    exact, best = 0.0, 0.0
    for reference in accepted:
        exact = max(exact, 1.0 if answer == reference else 0.0)
        if not answer or not reference:
            best = max(best, 1.0 if answer == reference else 0.0)
            continue
        left, common = list(reference), 0
        for token in answer:
            if token in left:
                left.remove(token)
                common += 1
        if common:
            precision, recall = common / len(answer), common / len(reference)
            best = max(best, 2 * precision * recall / (precision + recall))
    return exact, best


def random_answers(count=200):
    draw = random.Random(0)

    def text():
        return " ".join(draw.choices(WORDS, k=draw.randint(0, 4)))

    return [text() for _ in range(count)], [[text() for _ in range(draw.randint(0, 3))] for _ in range(count)]


def test_scores_equal_a_plain_loop():
    predictions, references = random_answers()
    exact, overlap = exact_matches(predictions, references), token_f1s(predictions, references)
    expected = np.array([plain_scores(*pair) for pair in zip(predictions, references, strict=True)])
    assert exact == pytest.approx(expected[:, 0])
    assert overlap == pytest.approx(expected[:, 1])
    assert 0 < exact.sum() < overlap.sum() < len(overlap)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The  Beatles", "beatles"),
        ("a\tcat\nand an ant", "cat and ant"),
        ("theatre of Athena", "theatre of athena"),
        ("U.S.A.", "usa"),
        ("the-end", "theend"),
        ("A.", ""),
        ("Ünïted", "ünïted"),
        ("«Zug»", "«zug»"),
    ],
)
def test_normalisation(text, expected):
    assert normalised(text) == expected


@pytest.mark.parametrize(
    ("prediction", "references", "exact", "overlap"),
    [
        ("the Normans", ["Normans"], 1, 1),
        ("Denver Broncos", ["The Denver Broncos!", "Broncos"], 1, 1),
        ("Broncos of Denver", ["Denver Broncos", "Broncos"], 0, 0.8),
        ("dog dog", ["dog"], 0, 2 / 3),
        ("nothing alike", ["else"], 0, 0),
        ("", [""], 1, 1),
        ("", [], 1, 1),
        ("the", [], 1, 1),
        ("", ["Paris"], 0, 0),
        ("Paris", [""], 0, 0),
        ("Paris", [], 0, 0),
        ("", ["...", "Paris"], 0, 0),
        ("", ["the", "..."], 1, 1),
    ],
)
def test_known_answers(prediction, references, exact, overlap):
    assert exact_matches([prediction], [references]).tolist() == [exact]
    assert token_f1s([prediction], [references]) == pytest.approx([overlap])


def test_lone_reference_is_not_read_letter_by_letter():
    assert exact_matches(["p", "Paris"], ["Paris", "Paris"]).tolist() == [0, 1]
    assert token_f1s(["p", "Paris"], ["Paris", "Paris"]).tolist() == [0, 1]


def test_answer_scores_are_means_with_intervals_over_questions():
    predictions, references = random_answers()
    scores = answer_scores(predictions, references, resamples=200, seed=1)
    assert list(scores) == ["exact_match", "f1"]
    assert scores["exact_match"].value == pytest.approx(exact_matches(predictions, references).mean())
    assert scores["f1"].value == pytest.approx(token_f1s(predictions, references).mean())
    assert all(score.low < score.value < score.high for score in scores.values())


@pytest.mark.parametrize(("predictions", "references"), [(["a"], ["a", "b"]), ([], [])])
def test_predictions_without_their_references_are_refused(predictions, references):
    with pytest.raises(ShapeError) as caught:
        answer_scores(predictions, references)
    assert str(caught.value) == (
        f"{len(predictions)} predictions cannot be scored against the references of {len(references)} examples. "
        "Give one prediction an example, and one example at least."
    )
