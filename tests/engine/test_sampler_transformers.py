"""Each of the sampler's parameters against transformers' own processors and warpers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from rbee.engine.sampler import distribution
from tests.engine.sampling_reference import row, transformers_distribution

if TYPE_CHECKING:
    from numpy.typing import NDArray

VOCAB_SIZE = 1003  # not a whole number of blocks
IMPOSSIBLE = 1e-30  # where the kernels may begin to see 0

PARAMETERS = [
    {},
    {"temperature": 0.3},
    {"temperature": 1.7},
    {"top_k": 1},
    {"top_k": 2},
    {"top_k": 50},
    {"top_k": 1002},
    {"top_k": 1003},
    {"top_k": 5000},
    {"top_p": 0.95},
    {"top_p": 0.5},
    {"top_p": 0.01},
    {"top_p": 0.9999},
    {"min_p": 0.05},
    {"min_p": 0.5},
    {"min_p": 1.0},
    {"typical_p": 0.95},
    {"typical_p": 0.5},
    {"typical_p": 0.05},
    {"repetition_penalty": 1.3},
    {"repetition_penalty": 0.5},
    {"frequency_penalty": 0.7},
    {"frequency_penalty": -1.5},
    {"presence_penalty": 1.2},
    {"presence_penalty": -0.4},
    {"logit_bias": {0: 2.5, 7: -100.0, 1002: 4.0}},
    {"allowed_token_ids": (1, 2, 7, 8, 500, 1002)},
    {"allowed_token_ids": tuple(range(0, 1003, 2))},
    {"stop_token_ids": (0, 3, 1002), "min_tokens": 7},
    {"stop_token_ids": (0, 3, 1002), "min_tokens": 6},
]


def words(length: int, seed: int) -> list[int]:
    """Tokens of which some occur several times, the first and the last of the vocabulary among them."""
    return [0, 1002, 7, 7, *(np.random.default_rng(seed).zipf(1.3, length) % VOCAB_SIZE).tolist()]


def check(logits: NDArray[np.float32], **params: Any) -> None:
    """The same tokens can be drawn, with the same probabilities."""
    wanted = transformers_distribution(logits, **params)
    for portable in (False, True):
        probabilities = distribution(logits, row(**params), portable=portable)
        assert ((probabilities > 0)[wanted > IMPOSSIBLE]).all()
        assert (probabilities[wanted == 0] == 0).all()
        np.testing.assert_allclose(probabilities, wanted, rtol=2e-5, atol=1e-12)


@pytest.mark.parametrize("scale", [0.5, 4.0])
@pytest.mark.parametrize("params", PARAMETERS, ids=str)
def test_a_parameter_alone(params, scale):
    """Flat and peaked logits, prompt and output of several tokens: the distribution is transformers'."""
    logits = np.random.default_rng(1).normal(0, scale, VOCAB_SIZE).astype(np.float32)
    assert len(np.unique(logits)) == VOCAB_SIZE  # where there are ties, transformers' top-p depends on its sort
    check(logits, prompt=words(8, 1), output=words(2, 2), **params)


def test_combinations():
    """Whatever is combined, the steps come in the same order, each on what the one before left."""
    random = np.random.default_rng(7)
    for number in range(150):
        params: dict[str, Any] = {"temperature": float(random.choice([0.5, 1, 2]))}
        choices: dict[str, list[Any]] = {
            "top_k": [2, 20, 300],
            "top_p": [0.97, 0.6],
            "min_p": [0.02, 0.3],
            "typical_p": [0.95, 0.4],
            "repetition_penalty": [1.2, 0.8],
            "frequency_penalty": [0.5, -0.5],
            "presence_penalty": [1.0],
            "logit_bias": [{3: 5.0, 0: -3.0}],
            "allowed_token_ids": [tuple(range(0, VOCAB_SIZE, 3))],
        }
        for name, values in choices.items():
            if random.random() < 0.4:
                params[name] = values[random.integers(len(values))]
        logits = random.normal(0, random.choice([0.5, 2, 6]), VOCAB_SIZE).astype(np.float32)
        check(logits, prompt=words(30, number), output=words(20, -number % 999), **params)


def test_a_large_vocabulary():
    """Where only candidates are looked at, and where they are not enough, what is left is what transformers leaves."""
    random = np.random.default_rng(3)
    for scale in (1.0, 3.0, 8.0):
        drawn = random.normal(0, scale, 40_000)
        drawn[random.integers(0, 40_000, 5)] += 5 * scale
        logits = drawn.astype(np.float32)
        _, first = np.unique(logits, return_index=True)
        logits[np.setdiff1d(np.arange(40_000), first)] = -np.inf  # so that there are no ties
        for params in ({"top_k": 50}, {"top_k": 3000}, {"top_p": 0.9}, {"min_p": 0.01}, {"typical_p": 0.9}):
            check(logits, **params)


@pytest.mark.parametrize("top_k", [1, 2, 3, 4, 5])
def test_tied_tokens_stay_or_go_together(top_k):
    """Top-k keeps all that are as likely as the k-th, as transformers does."""
    check(np.array([1, 3, 2, 3, 2, 2, 0, -np.inf], np.float32), top_k=top_k)


def test_equally_typical_tokens_stay_or_go_together():
    """Typical keeps all that are as typical as the last that it needs, as transformers does."""
    logits = np.array([4, 1, 1, 1, 0, 0, -2], np.float32)
    for typical_p in (0.01, 0.3, 0.9, 0.95, 0.99):
        check(logits, typical_p=typical_p)


def test_tied_tokens_at_the_edge_of_top_p():
    """Where transformers' top-p cuts between equal tokens, all of them stay."""
    logits = np.log(np.array([0.1, 0.4, 0.1, 0.3, 0.1], np.float32))
    kept = [np.flatnonzero(distribution(logits, row(top_p=top_p))).tolist() for top_p in (0.3, 0.5, 0.75)]
    assert kept == [[1], [1, 3], [0, 1, 2, 3, 4]]


def test_penalties_leave_other_rows_alone():
    """What was counted for one row is forgotten before the next."""
    logits = np.random.default_rng(5).normal(0, 1, VOCAB_SIZE).astype(np.float32)
    for params in ({"frequency_penalty": 0.5}, {"repetition_penalty": 1.5}, {"presence_penalty": 0.5}):
        for output in (words(40, 1), [5], words(40, 2), []):
            check(logits, prompt=[9], output=output, **params)
