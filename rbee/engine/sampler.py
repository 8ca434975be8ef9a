"""Logits to token ids: greedy, temperature, top-k, top-p, in one pass over the rows of a step.

Owns the arithmetic and the random draws. Does not know sequences, models or rings.

A row's result depends on that row alone, bit for bit, whatever runs beside it and after a preemption:
* its draw is a hash of (seed, position), there is no generator whose state others could move;
* every operation works along a row: element by element, a sum or running sum of the row in an order that depends on
  its length only, or an order statistic, which is a value and not the order that selection left things in.

Top-k and top-p are thresholds on a row, so tokens that are equally likely stay or go together (as in transformers'
top-k), and no row is ever sorted beyond the few largest values that its threshold needs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from rbee.sampling_params import SamplingParams

_SLAB_ELEMENTS = 1 << 17
_FIRST_CANDIDATES = 128
_GOLDEN = np.uint64(0x9E37_79B9_7F4A_7C15)


class Sampled(NamedTuple):
    """One entry per row.

    Attributes:
        token_ids: uint32 [n].
        logprobs: float32 [n], of the chosen token under the unmodified logits.
        valid: bool [n]; False where the logits held no finite maximum, and the other two mean nothing.
    """

    token_ids: NDArray[np.uint32]
    logprobs: NDArray[np.float32]
    valid: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class SamplingBatch:
    """The parameters of n rows as arrays [n]; position is the index of the token to be drawn in its sequence."""

    temperature: NDArray[np.float32]
    top_k: NDArray[np.int64]
    top_p: NDArray[np.float64]
    seed: NDArray[np.uint64]
    position: NDArray[np.uint64]

    @classmethod
    def of(cls, rows: Iterable[tuple[SamplingParams, int]]) -> SamplingBatch:
        """From (parameters, position) pairs that `invalid` found nothing wrong with."""
        values = [
            (params.temperature, params.top_k, params.top_p, params.seed & 0xFFFF_FFFF_FFFF_FFFF, position)
            for params, position in rows
        ]
        temperature, top_k, top_p, seed, position = zip(*values, strict=True) if values else ((), (), (), (), ())
        return cls(
            np.array(temperature, np.float32),
            np.array(top_k, np.int64),
            np.array(top_p, np.float64),
            np.array(seed, np.uint64),
            np.array(position, np.uint64),
        )

    def take(self, rows: NDArray[np.intp]) -> SamplingBatch:
        """The chosen rows."""
        return SamplingBatch(
            self.temperature[rows], self.top_k[rows], self.top_p[rows], self.seed[rows], self.position[rows]
        )


def invalid(params: SamplingParams) -> str | None:
    """What is wrong with a request's parameters, as a sentence; None when nothing is."""
    if params.max_tokens < 1:
        return f"max_tokens is {params.max_tokens}, but must be at least 1."
    if not 0 <= params.temperature < np.inf:
        return f"temperature is {params.temperature}, but must be a finite number of at least 0."
    if not 0 <= params.top_k < 2**63:
        return f"top_k is {params.top_k}, but must be at least 0."
    if not 0 <= params.top_p <= 1:
        return f"top_p is {params.top_p}, but must be between 0 and 1."
    return None


def sample(logits: NDArray[np.float32], batch: SamplingBatch) -> Sampled:
    """Choose a token per row.

    Args:
        logits: float32 [n, vocab_size]; -inf is a token that cannot be. Not changed.
        batch: the n rows' parameters.
    """
    n, vocab_size = logits.shape
    result = Sampled(np.zeros(n, np.uint32), np.zeros(n, np.float32), np.zeros(n, np.bool_))
    slab = max(1, _SLAB_ELEMENTS // vocab_size)  # a few rows at a time stay in the processor's cache
    for start in range(0, n, slab):
        rows = np.arange(start, min(n, start + slab))
        tokens, logprobs, valid = _sample_slab(logits[start : start + slab], batch.take(rows))
        result.token_ids[rows], result.logprobs[rows], result.valid[rows] = tokens, logprobs, valid
    return result


def uniform(seed: NDArray[np.uint64], position: NDArray[np.uint64]) -> NDArray[np.float64]:
    """A draw in [0, 1) for each (seed, position): SplitMix64 (Steele, Lea, Flood, OOPSLA 2014) at that place.

    The generator's state is a counter, so its output number `position` can be had directly. The seed is mixed once
    before use, because the sequences of seeds that differ by a multiple of its increment would overlap.
    """
    state = _mix(seed + _GOLDEN)
    return (_mix(state + (position + np.uint64(1)) * _GOLDEN) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58_476D_1CE4_E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D0_49BB_1331_11EB)
    return x ^ (x >> np.uint64(31))


def _sample_slab(logits: NDArray[np.float32], batch: SamplingBatch) -> Sampled:
    greedy = logits.argmax(axis=1)  # of equal maxima the lowest id; NaN wins over everything
    highest = np.take_along_axis(logits, greedy[:, None], axis=1)
    valid = np.isfinite(highest[:, 0])
    random = np.flatnonzero(valid & (batch.temperature > 0))
    tokens = greedy.astype(np.uint32)
    with np.errstate(invalid="ignore"):  # only in rows that are not valid
        shifted = logits - highest
        if len(random):
            tokens[random] = _draw(shifted[random], batch.take(random))
        chosen = np.take_along_axis(shifted, tokens[:, None].astype(np.intp), axis=1)[:, 0]
        # In place, because at this size memory costs more than arithmetic.
        log_total = np.log(np.exp(shifted, out=shifted).sum(axis=1, dtype=np.float64))
        return Sampled(tokens, (chosen - log_total).astype(np.float32), valid)


def _draw(shifted: NDArray[np.float32], batch: SamplingBatch) -> NDArray[np.intp]:
    """Draw from rows of logits whose maximum is 0; inversion of the distribution function, in order of token id."""
    with np.errstate(over="ignore"):
        weights = np.exp(shifted / batch.temperature[:, None])
    _apply_top_k(weights, batch.top_k)
    _apply_top_p(weights, batch.top_p)
    cumulative = np.cumsum(weights, axis=1, dtype=np.float64)
    # The first token whose running sum is beyond the target has a weight above 0. One is: uniform() <= 1 - 2**-53.
    target = uniform(batch.seed, batch.position) * cumulative[:, -1]
    chosen: NDArray[np.intp] = np.count_nonzero(cumulative <= target[:, None], axis=1)
    return chosen


def _apply_top_k(weights: NDArray[np.float32], top_k: NDArray[np.int64]) -> None:
    """Zero all but the k largest weights of each row, and those equal to the k-th; k = 0 keeps all."""
    size = weights.shape[1]
    rows = np.flatnonzero((top_k > 0) & (top_k < size))
    if len(rows) == 0:
        return
    chosen, kth = weights[rows], size - top_k[rows]
    threshold = np.partition(chosen, np.unique(kth), axis=1)[np.arange(len(rows)), kth]
    weights[rows] = np.where(chosen >= threshold[:, None], chosen, 0)


def _apply_top_p(weights: NDArray[np.float32], top_p: NDArray[np.float64]) -> None:
    """Zero all but the smallest set of largest weights that makes up top_p of the row; equal ones stay together."""
    rows = np.flatnonzero(top_p < 1)
    size, count = weights.shape[1], _FIRST_CANDIDATES
    wanted = top_p[rows] * weights[rows].sum(axis=1, dtype=np.float64)
    while len(rows):
        count = min(count, size)
        chosen = weights[rows]
        largest = -np.sort(-np.partition(chosen, size - count, axis=1)[:, size - count :], axis=1)
        reached = np.cumsum(largest, axis=1, dtype=np.float64) >= wanted[:, None]
        found = reached[:, -1] | (count == size)  # rounding may leave the sum of all just short of top_p close to 1
        last = np.where(reached[:, -1], reached.argmax(axis=1), count - 1)
        threshold = largest[np.arange(len(rows)), last]
        weights[rows[found]] = np.where(chosen >= threshold[:, None], chosen, 0)[found]
        rows, wanted, count = rows[~found], wanted[~found], count * 8
