"""From hidden states to a vector: the arithmetic alone."""

from __future__ import annotations

import numpy as np
import pytest

from rbee.engine.pool import Pool
from rbee.pooling_params import PoolingParams

MEAN = PoolingParams(method="mean", normalize=False)


def vector_of(*chunks, params=MEAN):
    """The vector of hidden states that come in these chunks."""
    pool = Pool(params)
    for chunk in chunks:
        pool.add(np.array(chunk, np.float32))
    return pool.vector()


def test_mean_counts_tokens_not_chunks():
    """Three tokens in chunks of two and one weigh alike."""
    assert vector_of([[1, 0], [2, 0]], [[9, 3]]).tolist() == [4, 1]


def test_small_values_count_beside_large_ones():
    """In any order, though float32 has no room for both."""
    assert vector_of([[2**24], [1]], [[-(2**24)]]).tolist() == [np.float32(1 / 3)]


def test_one_hidden_state_is_itself():
    """Bit for bit, though the sum has another precision."""
    state = np.random.default_rng(1).normal(size=(1, 64)).astype(np.float32)
    assert vector_of(state).tobytes() == state.tobytes()


def test_vector_is_cut_before_it_is_scaled():
    """So that what is left has length 1."""
    params = PoolingParams(method="mean", dimensions=2)
    assert vector_of([[3, 4, 100]], params=params).tolist() == pytest.approx([0.6, 0.8])


def test_zeros_have_no_direction():
    """They are a vector all the same."""
    assert vector_of([[0, 0]], params=PoolingParams(method="mean")).tolist() == [0, 0]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("params", [MEAN, PoolingParams(method="mean")])
def test_what_is_not_finite_is_no_vector(value, params):
    """In any of the chunks."""
    assert vector_of([[1, 1]], [[1, value]], params=params) is None


def test_what_is_cut_off_need_not_be_finite():
    """It is no part of the vector."""
    assert vector_of([[3, np.inf]], params=PoolingParams(method="mean", dimensions=1)).tolist() == [1]
