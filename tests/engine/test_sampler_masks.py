"""A row's mask, as its grammar makes it: the same, bit for bit, as if its tokens were the only allowed ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from rbee.engine.sampler import Row, ThreadPool, distribution, sample
from tests.engine.sampling_reference import row

if TYPE_CHECKING:
    from numpy.typing import NDArray

SIZES = [1, 31, 32, 33, 255, 256, 257, 3_000]
KINDS: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"top_k": 5, "top_p": 0.9},
    {"typical_p": 0.9, "num_logprobs": 3},
    {"repetition_penalty": 1.3, "min_p": 0.01, "num_logprobs": 0},
    {"logit_bias": {0: 5.0}, "min_tokens": 3, "stop_token_ids": (0, 2)},
]


def mask_of(token_ids: NDArray[np.int64], num_words: int) -> NDArray[np.uint32]:
    """The words with these bits."""
    bits = np.zeros(num_words * 32, np.uint8)
    bits[token_ids] = 1
    return np.packbits(bits, bitorder="little").view("<u4").copy()


@pytest.mark.parametrize("portable", [False, True])
def test_a_mask_is_what_allowed_token_ids_are(portable):
    """Tokens, validity, logprobs and distribution, whatever else a row has, and wherever the mask ends."""
    random = np.random.default_rng(5)
    pool = ThreadPool(2)
    drawn = 0
    for size in SIZES:
        logits = random.normal(0, 3, (40, size)).astype(np.float32)
        masked: list[Row] = []
        allowed: list[Row] = []
        for seed in range(40):
            num_words = int(random.integers(1, size // 32 + 3))
            token_ids = np.flatnonzero(random.random(num_words * 32) < random.choice([0.02, 0.5, 1.0]))
            params = KINDS[seed % len(KINDS)] | {"seed": seed, "prompt": [0], "output": [1]}
            if params.get("min_tokens"):  # both at once: what both allow
                params["allowed_token_ids"] = tuple(range(0, size, 2))
            common = set(token_ids.tolist()) & set(params.get("allowed_token_ids", token_ids.tolist()))
            masked.append(row(**params)._replace(mask=mask_of(token_ids, num_words)))
            allowed.append(row(**params | {"allowed_token_ids": tuple(common) or (size,)}))
        one = sample(logits, masked, pool=pool, portable=portable)
        other = sample(logits, allowed, portable=portable)
        assert [a.tobytes() for a in one] == [a.tobytes() for a in other]
        drawn += int(one.valid.sum())
        for number in np.flatnonzero(one.valid):
            assert (
                distribution(logits[number], masked[number], portable=portable).tobytes()
                == distribution(logits[number], allowed[number], portable=portable).tobytes()
            )
    assert 200 < drawn < 40 * len(SIZES)


def test_an_infinity_behind_a_mask_is_seen():
    """The row is not valid: a model that computes infinities is broken, whatever the mask shows of it."""
    logits = np.array([[np.inf, 1.0], [0.0, 1.0]], np.float32)
    rows = [row(temperature=0.0)._replace(mask=np.array([0b10], np.uint32))] * 2
    assert sample(logits, rows).valid.tolist() == [False, True]


@pytest.mark.parametrize("mask", [np.zeros(1, np.int32), np.zeros((1, 1), np.uint32), np.zeros(4, np.uint32)[::2]])
def test_a_mask_of_another_type_is_refused(mask):
    """It would be other tokens."""
    with pytest.raises(TypeError, match="mask must be"):
        sample(np.zeros((1, 32), np.float32), [row()._replace(mask=mask)])
