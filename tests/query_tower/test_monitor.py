import math

import pytest

from peft_rag.fusion.base import READ
from peft_rag.query_tower.monitor import RetrievalSpread


def rows(*found):
    return [{READ: list(positions)} for positions in found]


def test_spread_counts_documents_and_averages_the_entropy_of_those_with_neighbours():
    candidates = rows([0, 1, 9], [2, 3, 9], [4, 5], [])
    read, weights = [[0, 1], [1, 0], [4], []], [[0.5, 0.5], [0.9, 0.1], [1.0], []]
    spread = RetrievalSpread.of(candidates, read, weights, 2)
    assert (spread.documents_read, spread.distinct_documents, spread.distinct_before) == (5, 3, 6)
    assert spread.unique_share == pytest.approx(3 / 5)
    entropies = [math.log(2), -0.9 * math.log(0.9) - 0.1 * math.log(0.1), 0.0]
    assert spread.prior_entropy == pytest.approx(sum(entropies) / 3)
    assert spread.most_entropy == pytest.approx((2 * math.log(2) + 0.0) / 3)
    assert not spread.collapsed
    assert spread.warning == ""
    assert str(spread) == (
        "retrieval: 60% of 5 documents read are different ones (3; the frozen encoder: 6), entropy of π 0.34 of 0.46 "
        "nats"
    )


def test_share_of_no_certain_neighbour_is_no_entropy():
    spread = RetrievalSpread.of(rows([0, 1]), [[0, 1]], [[1.0, 0.0]], 2)
    assert spread.prior_entropy == 0.0


def test_tower_that_gives_every_example_the_same_documents_has_collapsed():
    candidates = rows(*([n, n + 20] for n in range(20)))
    same = RetrievalSpread.of(candidates, [[3, 7]] * 20, [[0.5, 0.5]] * 20, 2)
    assert same.collapsed
    assert same.warning.startswith(
        "warning: the retrieval collapses: the query tower reads 2 different documents where the frozen encoder finds"
    )
    kept = RetrievalSpread.of(candidates, [row[READ] for row in candidates], [[0.5, 0.5]] * 20, 2)
    assert not kept.collapsed


def test_small_corpus_is_no_collapse():
    candidates = rows(*([0, 1] for _ in range(50)))
    assert not RetrievalSpread.of(candidates, [[1, 0]] * 50, [[0.5, 0.5]] * 50, 2).collapsed


def test_nothing_found_at_all_is_told_without_a_division_by_zero():
    spread = RetrievalSpread.of(rows([], []), [[], []], (), 2)
    assert (spread.unique_share, spread.prior_entropy, spread.collapsed) == (0.0, 0.0, False)


def test_spread_survives_a_trainers_metrics():
    spread = RetrievalSpread.of(rows([0, 1], [2, 3]), [[0, 1], [2, 1]], [[0.5, 0.5], [0.7, 0.3]], 2)
    metrics = {f"eval_{name}": value for name, value in spread.to_dict().items()} | {"eval_loss": 1.0}
    assert RetrievalSpread.from_metrics(metrics, "eval_") == spread
    assert RetrievalSpread.from_metrics({"eval_loss": 1.0}, "eval_") is None
