"""Vectors in fewer bytes, against plain loops."""

import numpy as np
import pytest

from peft_rag.errors import RetrievalError
from peft_rag.retrieval.precision import PRECISIONS, largest_error, pack, unpack


def in_loops(vector):
    """Quantise one vector to int8 and back, a number at a time."""
    scale = np.float32(max(abs(float(number)) for number in vector) / 127)
    return [np.float32(round(float(number) / float(scale))) * scale if scale else np.float32(0) for number in vector]


def test_int8_keeps_what_plain_loops_keep_and_errs_by_half_a_step_at_most(unit_vectors):
    vectors = unit_vectors(50, 24)
    stored = pack(vectors, "int8")
    assert (stored.dtype, stored.shape) == (np.int8, (50, 28))
    assert unpack(stored) == pytest.approx(np.array([in_loops(vector) for vector in vectors]), abs=1e-7)
    steps = np.abs(vectors).max(axis=1, keepdims=True) / 127
    assert (np.abs(unpack(stored) - vectors) <= 0.5001 * steps).all()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_packing_again_changes_nothing(unit_vectors, precision):
    once = unpack(pack(unit_vectors(40, 16), precision))
    assert unpack(pack(once, precision)) == pytest.approx(once, abs=1e-7)
    assert pack(once, precision).shape == (40, {"float32": 16, "float16": 16, "int8": 20}[precision])
    assert once.dtype == np.float32


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_zero_vector_stays_zero_and_no_vector_is_no_vector(precision):
    assert not unpack(pack(np.zeros((1, 8), np.float32), precision)).any()
    assert unpack(pack(np.zeros((0, 8), np.float32), precision)).shape == (0, 8)


@pytest.mark.parametrize(("precision", "bytes_each"), [("float32", 384 * 4), ("float16", 384 * 2), ("int8", 384 + 4)])
def test_bytes_of_a_vector(precision, bytes_each):
    assert pack(np.ones((3, 384), np.float32), precision).nbytes == 3 * bytes_each


def test_float16_refuses_what_it_cannot_hold_and_int8_takes_it():
    large = np.array([[1e6, 1.0]], np.float32)
    with pytest.raises(RetrievalError, match=r"a vector holds 1e\+06, more than float16 can"):
        pack(large, "float16")
    assert unpack(pack(large, "int8"))[0, 0] == pytest.approx(1e6)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_largest_error_bounds_what_a_slightly_different_encoder_gives(unit_vectors, precision):
    vectors = unit_vectors(200, 32)
    nearly = vectors + np.random.default_rng(1).uniform(-1e-5, 1e-5, vectors.shape).astype(np.float32)
    difference = np.abs(unpack(pack(nearly, precision)) - unpack(pack(vectors, precision))).max()
    assert difference < largest_error(vectors, precision)
