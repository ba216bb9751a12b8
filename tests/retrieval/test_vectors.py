import math

import numpy as np
import pytest

from peft_rag.errors import ConfigError, RetrievalError, ShapeError
from peft_rag.retrieval import vectors as module
from peft_rag.retrieval.base import Neighbours
from peft_rag.retrieval.vectors import exact_search, normalise


def brute_force(queries, vectors, k, exclude=None):
    """Plain loops: the exact inner product rounded to float32, the best first, equal ones by position."""
    rows = []
    for number, query in enumerate(queries.tolist()):
        scored = []
        for position, vector in enumerate(vectors.tolist()):
            if exclude is not None and position in exclude[number]:
                continue
            score = float(np.float32(math.fsum(a * b for a, b in zip(query, vector, strict=True))))
            scored.append((-score, position))
        rows.append([(position, -score) for score, position in sorted(scored)[:k]])
    return rows


def rows(neighbours):
    return [neighbours.row(number) for number in range(len(neighbours))]


@pytest.mark.parametrize("k", [1, 5, 39, 40, 100])
@pytest.mark.parametrize("excluding", [False, True])
def test_exact_search_equals_plain_loops(unit_vectors, k, excluding):
    vectors, queries = unit_vectors(40), unit_vectors(15, seed=1)
    random = np.random.default_rng(2)
    exclude = [set(random.integers(0, 40, 2 * row).tolist()) for row in range(15)] if excluding else None
    found = exact_search(queries, vectors, k, exclude)
    assert rows(found) == brute_force(queries, vectors, k, exclude)
    assert found.positions.dtype == np.int64
    assert found.scores.dtype == np.float32
    assert found.positions.shape == found.scores.shape == (15, k)


def test_exact_search_equals_plain_loops_in_blocks_and_for_vectors_of_any_length(monkeypatch):
    monkeypatch.setattr(module, "_CELLS", 100)
    monkeypatch.setattr(module, "_PAIRS", 7)
    random = np.random.default_rng(0)
    vectors = (100 * random.normal(size=(33, 8))).astype(np.float32)
    queries = random.normal(size=(20, 8)).astype(np.float32)
    assert rows(exact_search(queries, vectors, 4)) == brute_force(queries, vectors, 4)


def test_exact_search_orders_equal_vectors_by_position_whatever_the_block(unit_vectors):
    vectors = np.concatenate([unit_vectors(5, 384)] * 40)
    queries = unit_vectors(64, 384, seed=3)
    found = exact_search(queries, vectors, 8)
    for number in range(64):
        best = found.positions[number, 0]
        assert best < 5
        assert found.positions[number].tolist() == [best + 5 * copy for copy in range(8)]
    for number in range(0, 64, 7):
        alone = exact_search(queries[number : number + 1], vectors, 8)
        assert alone.positions.tolist() == found.positions[number : number + 1].tolist()
        assert alone.scores.tolist() == found.scores[number : number + 1].tolist()


def test_exact_search_pads_when_fewer_are_allowed_than_asked_for(unit_vectors):
    vectors = unit_vectors(3)
    found = exact_search(vectors[:2], vectors, 4, [{0}, {0, 1, 2}])
    assert found.positions[0, 2:].tolist() == [-1, -1]
    assert found.scores[0, 2:].tolist() == [-np.inf, -np.inf]
    assert len(found.row(0)) == 2
    assert found.row(1) == []
    assert exact_search(vectors, vectors[:0], 2).positions.tolist() == [[-1, -1]] * 3
    assert exact_search(vectors[:0], vectors, 2).positions.shape == (0, 2)


def test_exact_search_refuses_what_it_cannot_search(unit_vectors):
    vectors = unit_vectors(3)
    with pytest.raises(ConfigError, match=r"^k must be at least 1, but is 0\.$"):
        exact_search(vectors, vectors, 0)
    with pytest.raises(ShapeError, match=r"must agree about D, but have shapes \(3, 5\) and \(3, 24\)"):
        exact_search(vectors[:, :5], vectors, 1)
    with pytest.raises(ShapeError, match=r"one entry a query, but has 1 for 3 queries"):
        exact_search(vectors, vectors, 1, [set()])
    broken = vectors.copy()
    broken[1, 3] = np.nan
    with pytest.raises(RetrievalError, match=r"^the indexed vector 1 holds NaN or infinity"):
        exact_search(vectors, broken, 1)
    with pytest.raises(RetrievalError, match=r"^the query vector 1 holds NaN or infinity"):
        exact_search(broken, vectors, 1)


def test_normalise_scales_to_length_one_and_leaves_zero():
    scaled = normalise(np.array([[3, 4], [0, 0]], dtype=np.float32))
    assert scaled.tolist() == [[pytest.approx(0.6), pytest.approx(0.8)], [0, 0]]
    assert scaled.dtype == np.float32


def test_neighbours_give_rows_and_heads_and_refuse_shapes_that_differ():
    found = Neighbours(np.array([[4, 2, -1]]), np.array([[0.5, 0.25, -np.inf]], dtype=np.float32))
    assert (len(found), found.k) == (1, 3)
    assert found.row(0) == [(4, 0.5), (2, 0.25)]
    assert found.head(1).row(0) == [(4, 0.5)]
    with pytest.raises(ShapeError, match=r"\(1, 3\) and \(1, 2\)"):
        Neighbours(found.positions, found.scores[:, :2])
