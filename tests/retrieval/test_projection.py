"""The directions a short graph compares, against power iteration in plain loops."""

import numpy as np
import pytest

from peft_rag.retrieval.projection import principal_directions


def first_direction(rows):
    """Find the direction of the largest second moment by power iteration."""
    direction = np.ones(rows.shape[1])
    for _ in range(500):
        direction = sum(row * float(row @ direction) for row in rows)
        direction /= np.linalg.norm(direction)
    return direction


@pytest.mark.parametrize("metric", ["cosine", "ip", "l2"])
def test_first_direction_is_that_of_power_iteration(unit_vectors, metric):
    vectors = unit_vectors(60, 12).astype(np.float64)
    rows = vectors - vectors.mean(axis=0) if metric == "l2" else vectors
    found = principal_directions(vectors.astype(np.float32), 3, metric)
    assert found.shape == (12, 3)
    assert found.T @ found == pytest.approx(np.eye(3), abs=1e-5)
    assert abs(float(found[:, 0] @ first_direction(rows))) == pytest.approx(1, abs=1e-4)


def test_all_directions_keep_every_product(unit_vectors):
    vectors = unit_vectors(30, 8)
    short = vectors @ principal_directions(vectors, 8, "cosine")
    assert short @ short.T == pytest.approx(vectors @ vectors.T, abs=1e-5)


def test_directions_are_the_same_every_time_and_for_mirrored_vectors(unit_vectors):
    vectors = unit_vectors(80, 10)
    assert np.array_equal(principal_directions(vectors, 4, "ip"), principal_directions(vectors.copy(), 4, "ip"))
    assert principal_directions(-vectors, 4, "ip") == pytest.approx(principal_directions(vectors, 4, "ip"), abs=1e-5)
