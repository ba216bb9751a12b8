import warnings

import numpy as np
import pytest
from seqeval import metrics
from seqeval.scheme import IOB2

from peft_rag.errors import DataError, ShapeError
from peft_rag.evaluation.entities import Entity, entities, entity_counts, entity_f1, entity_scores

TAGS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
HAND_MADE = {
    "all right": (["B-PER", "I-PER", "O"], ["B-PER", "I-PER", "O"]),
    "I without B": (["O", "I-PER", "I-PER"], ["O", "B-PER", "I-PER"]),
    "I without B on both sides": (["I-PER", "I-PER"], ["I-PER", "I-PER"]),
    "type changes inside": (["B-PER", "I-LOC", "I-LOC"], ["B-PER", "I-PER", "I-PER"]),
    "type changes and comes back": (["B-PER", "I-LOC", "I-PER"], ["B-PER", "I-LOC", "I-PER"]),
    "neighbours of one type": (["B-PER", "B-PER", "I-PER"], ["B-PER", "I-PER", "I-PER"]),
    "too short": (["B-PER", "O"], ["B-PER", "I-PER"]),
    "wrong type": (["B-LOC", "I-LOC"], ["B-PER", "I-PER"]),
    "nothing predicted": (["O", "O"], ["B-PER", "I-PER"]),
    "nothing there": (["B-PER", "O"], ["O", "O"]),
    "nothing on either side": (["O", "O"], ["O", "O"]),
    "no token": ([], []),
    "type with a hyphen": (["B-creative-work", "I-creative-work"], ["B-creative-work", "I-creative-work"]),
}


def seqevals(predicted, actual):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # seqeval warns where a score is 0/0
        scores = {"entity_precision": metrics.precision_score, "entity_recall": metrics.recall_score}
        scores["entity_f1"] = metrics.f1_score
        return {name: float(score(actual, predicted, mode="strict", scheme=IOB2)) for name, score in scores.items()}


def ours(predicted, actual):
    return {name: score.value for name, score in entity_scores(predicted, actual, resamples=0).items()}


def sentences(seed, count=40, right=0.6):
    """Return random tags, and others that agree with them for the share that is right."""
    draw = np.random.default_rng(seed)
    actual = [draw.choice(TAGS, draw.integers(0, 12)).tolist() for _ in range(count)]
    predicted = [[tag if draw.random() < right else str(draw.choice(TAGS)) for tag in tags] for tags in actual]
    return predicted, actual


def plain_entities(tags):
    """Read one tag after another, with the open entity in hand."""
    found, start, kind = [], None, None
    for number, tag in enumerate([*tags, "O"]):
        if start is not None and tag != f"I-{kind}":
            found.append((kind, start, number))
            start = None
        if tag.startswith("B-"):
            start, kind = number, tag[2:]
    return found


@pytest.mark.parametrize(("predicted", "actual"), HAND_MADE.values(), ids=HAND_MADE)
def test_scores_of_one_sentence_are_seqevals(predicted, actual):
    assert ours([predicted], [actual]) == seqevals([predicted], [actual])


@pytest.mark.parametrize("right", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("seed", range(5))
def test_scores_of_random_sentences_are_seqevals(seed, right):
    predicted, actual = sentences(seed, right=right)
    assert ours(predicted, actual) == seqevals(predicted, actual)


def test_hand_made_sentences_together_are_scored_as_seqeval_does():
    predicted, actual = (list(side) for side in zip(*HAND_MADE.values(), strict=True))
    scores = ours(predicted, actual)
    assert scores == seqevals(predicted, actual)
    assert 0 < scores["entity_f1"] < 1


@pytest.mark.parametrize("seed", range(5))
def test_entities_equal_a_plain_loop(seed):
    for tags in sentences(seed)[1]:
        assert entities(tags) == plain_entities(tags)


def test_counts_are_of_whole_entities_in_each_sentence():
    predicted = [["B-PER", "I-PER", "O", "B-LOC"], ["O", "B-LOC"], ["B-PER"]]
    actual = [["B-PER", "I-PER", "O", "B-PER"], ["B-LOC", "I-LOC"], ["O"]]
    assert entity_counts(predicted, actual).tolist() == [[1, 2, 2], [0, 1, 1], [0, 1, 0]]


def test_interval_is_that_of_seqeval_over_the_same_draws_of_sentences():
    predicted, actual = sentences(3, count=15)
    generator, values = np.random.default_rng(7), []
    for _ in range(30):
        chosen = generator.integers(0, 15, 15)
        values.append(seqevals([predicted[row] for row in chosen], [actual[row] for row in chosen])["entity_f1"])
    score = entity_scores(predicted, actual, resamples=30, seed=7)["entity_f1"]
    assert (score.low, score.high) == tuple(np.percentile(values, [2.5, 97.5]))
    assert score.low < score.value < score.high


def test_f1_is_zero_without_any_entity():
    assert entity_f1(np.zeros((4, 3), dtype=np.int64)) == 0.0


def test_entity_tells_type_and_place():
    assert entities(["O", "B-PER", "I-PER"]) == [Entity(type="PER", start=1, end=3)]


@pytest.mark.parametrize("tag", ["PER", "B", "I-", "B--", "o", "S-PER", "", "O-PER"])
def test_tag_that_is_not_bio_is_refused_with_its_place(tag):
    with pytest.raises(DataError) as caught:
        entity_counts([["O"], ["O", tag]], [["O"], ["O", "O"]])
    assert str(caught.value) == f"sentence 2: tag '{tag}' of token 2 is not BIO. Write O, B-TYPE or I-TYPE."


def test_sides_of_different_length_are_refused():
    with pytest.raises(ShapeError) as caught:
        entity_counts([["O"]], [["O"], ["O"]])
    assert str(caught.value) == (
        "tags of 1 sentences are predicted, but 2 sentences are tagged. Give both for every sentence."
    )
    with pytest.raises(ShapeError) as caught:
        entity_counts([["O"], ["O"]], [["O"], ["O", "O"]])
    assert str(caught.value) == "sentence 2 has 2 tags, but 1 are predicted. Give one tag a token."
    with pytest.raises(ValueError, match="at least one example"):
        entity_scores([], [])
