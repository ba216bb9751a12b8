"""Entities of BIO tags, and how many of them were found: strict IOB2, as seqeval reads it.

Dims: S sentences. Counts of entities are ``(S, 3)``, with columns found rightly, predicted, actual. They are taken
once, so that drawing sentences again for an interval reads no tag again.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from peft_rag.errors import DataError, ShapeError
from peft_rag.evaluation.bootstrap import Score, bootstrap
from peft_rag.evaluation.scores import IntArray


class Entity(NamedTuple):
    """A run of tokens with a type.

    Attributes:
        type: what follows ``B-`` in its tag.
        start: number of its first token.
        end: number of the token after its last.
    """

    type: str
    start: int
    end: int


def entities(tags: Sequence[str]) -> list[Entity]:
    """Return the entities of one sentence, in its order.

    An entity starts at ``B-TYPE`` and goes on over ``I-TYPE`` of the same type. An ``I-TYPE`` that continues nothing
    belongs to no entity.

    >>> entities(["B-PER", "I-PER", "O", "I-LOC", "B-LOC"])
    [Entity(type='PER', start=0, end=2), Entity(type='LOC', start=4, end=5)]

    Raises:
        DataError: a tag is not O, B-TYPE or I-TYPE.
    """
    return list(_parsed(tuple(tags)))


@lru_cache(maxsize=1 << 16)
def _parsed(tags: tuple[str, ...]) -> tuple[Entity, ...]:
    """Parse a sentence's tags once: hundreds of settings are scored on validation, most of them with the same tags."""
    from seqeval.scheme import IOB2, Tokens

    for number, tag in enumerate(tags, start=1):
        if tag != "O" and not (tag[:2] in ("B-", "I-") and tag[2:].strip("-")):
            raise DataError(f"tag '{tag}' of token {number} is not BIO. Write O, B-TYPE or I-TYPE.")
    return tuple(Entity(found.tag, found.start, found.end) for found in Tokens(list(tags), IOB2).entities)


def entity_counts(predicted: Sequence[Sequence[str]], actual: Sequence[Sequence[str]]) -> IntArray:
    """Count, per sentence, the entities found rightly (type and both ends), predicted and actual: ``(S, 3)``.

    Raises:
        DataError: a tag is not BIO.
        ShapeError: the sides differ in the number of sentences, or of a sentence's tags.
    """
    if len(predicted) != len(actual):
        raise ShapeError(
            f"tags of {len(predicted)} sentences are predicted, but {len(actual)} sentences are tagged. "
            "Give both for every sentence."
        )
    counts = np.zeros((len(actual), 3), dtype=np.int64)
    for row, (guess, truth) in enumerate(zip(predicted, actual, strict=True)):
        if len(guess) != len(truth):
            raise ShapeError(
                f"sentence {row + 1} has {len(truth)} tags, but {len(guess)} are predicted. Give one tag a token."
            )
        try:
            found, wanted = set(entities(guess)), set(entities(truth))
        except DataError as error:
            raise DataError(f"sentence {row + 1}: {error}") from None
        counts[row] = len(found & wanted), len(found), len(wanted)
    return counts


def entity_precision(counts: IntArray) -> float:
    """Return the share of the predicted entities that are right, in [0, 1]; 0 where none is predicted."""
    right, predicted, _ = counts.sum(axis=0)
    return float(right / predicted) if predicted else 0.0


def entity_recall(counts: IntArray) -> float:
    """Return the share of the actual entities that were found, in [0, 1]; 0 where there is none."""
    right, _, actual = counts.sum(axis=0)
    return float(right / actual) if actual else 0.0


def entity_f1(counts: IntArray) -> float:
    """Return F1 = 2·P·R / (P + R) over all entities together, in [0, 1]; 0 where nothing is right.

    Source: Tjong Kim Sang & De Meulder 2003, arXiv:cs/0306050, section 2.5.
    """
    precision, recall = entity_precision(counts), entity_recall(counts)
    return 2.0 * precision * recall / (precision + recall) if precision + recall else 0.0


def entity_scores(
    predicted: Sequence[Sequence[str]], actual: Sequence[Sequence[str]], *, resamples: int = 1000, seed: int = 0
) -> dict[str, Score]:
    """Score predicted tags against actual ones, with intervals over sentences.

    Args:
        predicted: BIO tags of each sentence.
        actual: BIO tags of the same sentences, one a token.
        resamples: number of draws of sentences; with 0 an interval is the score itself.
        seed: of the draws.

    Returns:
        ``entity_precision``, ``entity_recall`` and ``entity_f1``.

    Raises:
        DataError: a tag is not BIO.
        ShapeError: the sides differ in the number of sentences, or of a sentence's tags.
        ValueError: there is no sentence.
    """
    counts = entity_counts(predicted, actual)
    return {
        score.__name__: bootstrap(score, counts, resamples=resamples, seed=seed)
        for score in (entity_precision, entity_recall, entity_f1)
    }
