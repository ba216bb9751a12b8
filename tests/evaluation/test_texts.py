import random
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
import sacrebleu
from rouge_score.rouge_scorer import RougeScorer

from peft_rag.errors import ConfigError, DataError, ShapeError
from peft_rag.evaluation import texts
from peft_rag.evaluation.texts import TOKENIZERS, bleu, bleu_counts, chrf, chrf_counts, rouge, text_scores

WORDS = ["A", "man", "rides", "riding", "horses,", "dogs", "über", "grass", "(1.5)", "on", "don't", "犬が", "red"]


def sentence(draw, low=0):
    return " ".join(draw.choices(WORDS, k=draw.randint(low, 14))) + draw.choice([".", " .", "", "!"])


def corpus(seed, references=1, count=25, most=None):
    """Return predictions and the references they were made from, by changing some words."""
    draw = random.Random(seed)
    given = [[sentence(draw) for _ in range(draw.randint(references, most or references))] for _ in range(count)]
    predictions = [
        " ".join(word if draw.random() < 0.7 else draw.choice(WORDS) for word in rows[0].split()) for rows in given
    ]
    return predictions, given


def streams(references):
    """Return references by rank, as sacrebleu takes them, None where an example has fewer."""
    most = max(len(given) for given in references)
    return [[given[rank] if rank < len(given) else None for given in references] for rank in range(most)]


CORPORA = {
    "one reference": corpus(0),
    "three references": corpus(1, 3),
    "one to four references": corpus(2, 1, most=4),
    "nothing predicted": (["", ""], [["a cat"], ["a dog"]]),
    "nothing wanted": (["a cat", "a dog"], [[""], [""]]),
    "nothing at all": ([""], [[""]]),
    "nothing common": (["xyz uvw"], [["a cat"]]),
    "no pair common": (["dog the big cat sat"], [["cat big the dog sat"]]),
    "all right": (["a cat sat there"], [["a cat sat there"]]),
    "shorter than four words": (["a cat"], [["a cat"]]),
}


@pytest.mark.parametrize("tokenize", TOKENIZERS)
@pytest.mark.parametrize(("predictions", "references"), CORPORA.values(), ids=CORPORA)
def test_bleu_is_sacrebleus(predictions, references, tokenize):
    expected = sacrebleu.corpus_bleu(predictions, streams(references), tokenize=tokenize).score / 100
    assert bleu(bleu_counts(predictions, references, tokenize)) == expected


@pytest.mark.parametrize(("predictions", "references"), CORPORA.values(), ids=CORPORA)
def test_chrf_is_sacrebleus(predictions, references):
    expected = sacrebleu.corpus_chrf(predictions, streams(references)).score / 100
    assert chrf(chrf_counts(predictions, references)) == expected


def test_scores_of_similar_texts_lie_between_nothing_and_all():
    predictions, references = CORPORA["one reference"]
    scores = text_scores(predictions, references, resamples=0)
    assert list(scores) == ["bleu", "chrf", "rouge1", "rouge2", "rougeL"]
    assert all(0.1 < score.value < 0.95 for score in scores.values())


@pytest.mark.parametrize("name", ["bleu", "chrf"])
def test_interval_is_that_of_sacrebleu_over_the_same_draws_of_texts(name):
    predictions, references = corpus(4, 1, count=12, most=3)
    score = {"bleu": sacrebleu.corpus_bleu, "chrf": sacrebleu.corpus_chrf}[name]
    generator, values = np.random.default_rng(5), []
    for _ in range(20):
        chosen = generator.integers(0, 12, 12)
        drawn = streams([references[row] for row in chosen])
        values.append(score([predictions[row] for row in chosen], drawn).score / 100)
    ours = text_scores(predictions, references, metrics=(name,), resamples=20, seed=5)[name]
    assert [ours.low, ours.high] == pytest.approx(list(np.percentile(values, [2.5, 97.5])), rel=1e-12)
    assert ours.low < ours.value < ours.high


def test_resampling_tokenises_nothing_again(monkeypatch):
    from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

    seen, tokenise = [], Tokenizer13a.__call__
    monkeypatch.setattr(Tokenizer13a, "__call__", lambda self, line: seen.append(line) or tokenise(self, line))
    predictions, references = CORPORA["one reference"]
    text_scores(predictions, references, metrics=("bleu",), resamples=50)
    assert len(seen) == 2 * len(predictions)


def plain_rouge(prediction, reference):
    """Return F1 of words, pairs and longest common subsequence by plain counting."""
    sides = []
    for text in (prediction, reference):
        letters = "".join(c if c in "abcdefghijklmnopqrstuvwxyz0123456789" else " " for c in text.lower())
        sides.append(letters.split())

    def share(common, left, right):
        return 2 * common / (left + right) if common else 0.0

    def overlap(left, right):
        rest, common = list(right), 0
        for item in left:
            if item in rest:
                rest.remove(item)
                common += 1
        return share(common, len(left), len(right))

    def longest(left, right):
        row = [0] * (len(right) + 1)
        for one in left:
            last = row
            row = [0]
            for place, other in enumerate(right):
                row.append(last[place] + 1 if one == other else max(last[place + 1], row[place]))
        return row[-1]

    pairs = [list(pairwise(side)) for side in sides]
    return overlap(*sides), overlap(*pairs), share(longest(*sides), len(sides[0]), len(sides[1]))


@pytest.mark.parametrize(("predictions", "references"), CORPORA.values(), ids=CORPORA)
def test_rouge_equals_a_plain_loop_over_the_references(predictions, references):
    scores = rouge(predictions, references)
    for number, name in enumerate(["rouge1", "rouge2", "rougeL"]):
        expected = [
            max(plain_rouge(text, one)[number] for one in given)
            for text, given in zip(predictions, references, strict=True)
        ]
        assert scores[name] == pytest.approx(expected)


def test_rouge_of_stems_is_rouge_scores():
    predictions, references = ["riding horses", "dogs"], ["rides a horse", "the dog"]
    scorer = RougeScorer(["rouge1"], use_stemmer=True)
    expected = [scorer.score(*pair)["rouge1"].fmeasure for pair in zip(references, predictions, strict=True)]
    assert rouge(predictions, references, ["rouge1"], stem=True)["rouge1"].tolist() == expected
    assert text_scores(predictions, references, metrics=("rouge1",), stem=True)["rouge1"].value == np.mean(expected)
    assert rouge(predictions, references, ["rouge1"])["rouge1"].tolist() == [0, 0]


def test_lone_references_equal_lists_of_one():
    predictions, references = CORPORA["one reference"]
    alone = [given[0] for given in references]
    assert text_scores(predictions, alone, resamples=5) == text_scores(predictions, references, resamples=5)


def test_only_what_is_asked_for_is_counted(monkeypatch):
    for name in ("bleu_counts", "rouge"):
        monkeypatch.setattr(texts, name, None)
    assert list(text_scores(["a"], ["a"], metrics=("chrf",), resamples=0)) == ["chrf"]


def test_unknown_names_are_refused():
    with pytest.raises(ConfigError) as caught:
        text_scores(["a"], ["a"], metrics=("bleu", "rogue1"))
    assert str(caught.value) == (
        "no score of texts 'rogue1'. Did you mean 'rouge1'? Choose bleu, chrf, rouge1, rouge2, rougeL."
    )
    with pytest.raises(ConfigError) as caught:
        text_scores(["a"], ["a"], tokenize="flores200")
    assert str(caught.value) == "BLEU has no tokenizer 'flores200' here. Choose 13a, intl, zh, char, none."


@pytest.mark.parametrize("metric", ["bleu", "chrf", "rouge2"])
def test_examples_without_reference_are_refused(metric):
    with pytest.raises(DataError) as caught:
        text_scores(["a", "b"], [["a"], []], metrics=(metric,))
    assert str(caught.value) == "example 2 has no reference to score its text against. Add one, or leave it out."
    with pytest.raises(ShapeError, match="1 predictions cannot be scored against the references of 2 examples"):
        text_scores(["a"], ["a", "b"], metrics=(metric,))
    with pytest.raises(ShapeError, match="one example at least"):
        text_scores([], [], metrics=(metric,))


QUIET = """
import logging, socket

def refuse(*arguments):
    raise AssertionError("a score asked the network")

socket.socket.connect = socket.getaddrinfo = refuse
handlers, level = list(logging.getLogger().handlers), logging.getLogger().level
from peft_rag.evaluation.entities import entity_scores
from peft_rag.evaluation.texts import text_scores

predictions = ["the old dogs were running ."] * 120
text_scores(predictions, ["old dogs ran ."] * 120, stem=True, resamples=2)
entity_scores([["O"]], [["O"]], resamples=2)
assert (logging.getLogger().handlers, logging.getLogger().level) == (handlers, level)
"""


def test_nothing_is_said_or_asked_for_from_the_first_import_on(tmp_path):
    """120 texts with a tokenised full stop are enough for sacrebleu to complain of them."""
    environment = {"HOME": str(tmp_path), "PATH": "", "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", QUIET], capture_output=True, text=True, check=False, env=environment
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == []
