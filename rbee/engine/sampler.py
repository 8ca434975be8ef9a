"""Logits to token ids and logprobs.

Owns the check of SamplingParams, the arrays that the kernels of `native/kernels/` fill, and one native call for all
rows of a step. Does not know sequences, models or rings.

A row's result depends on that row alone, bit for bit, on any machine and thread, and after a preemption: its draw is a
hash of (seed, position), and the row alone decides the order of every sum.

Filters are thresholds and leave at least one token. Equally likely (or equally typical) tokens stay or go together,
even if they exceed top_k. transformers' top-k and typical do the same; its top-p cuts between equal tokens, wherever
sorting left them.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from rbee.engine import _kernels

if TYPE_CHECKING:
    import array
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from rbee.sampling_params import SamplingParams

ThreadPool = _kernels.ThreadPool

_LARGEST_SEED = 0xFFFF_FFFF_FFFF_FFFF
_LARGEST_COUNT = 0xFFFF_FFFF


class RowSampler(_kernels.RowParams):
    """The parameters of a sequence, which `invalid` accepts, in the form of the kernels; kept from step to step."""

    def __init__(self, params: SamplingParams) -> None:
        super().__init__(
            temperature=params.temperature,
            top_k=min(params.top_k, _LARGEST_COUNT),
            top_p=params.top_p,
            min_p=params.min_p,
            typical_p=params.typical_p,
            frequency_penalty=params.frequency_penalty,
            presence_penalty=params.presence_penalty,
            repetition_penalty=params.repetition_penalty,
            min_tokens=min(params.min_tokens, _LARGEST_COUNT),
            seed=params.seed & _LARGEST_SEED,
            logit_bias=list(params.logit_bias.items()),
            stop_token_ids=params.stop_token_ids,
            allowed_token_ids=params.allowed_token_ids,
            num_logprobs=params.num_logprobs,
        )
        self.num_logprobs = params.num_logprobs


class Row(NamedTuple):
    """One row of a step."""

    sampler: RowSampler  # of the sequence
    token_ids: array.array[int]  # its prompt, then its output so far; C unsigned ints
    num_prompt_tokens: int  # how many of them are the prompt
    # What its grammar allows: token t is bit t % 32 of word t // 32; those behind the last may not come. None: all may.
    mask: NDArray[np.uint32] | None = None


class Sampled(NamedTuple):
    """One entry per row.

    The first num_logprobs entries of a row of `top_ids` are its most likely tokens under the unmodified logits, best
    first, of equal ones the lowest id; the others are 0, their logprobs NaN. k is the largest num_logprobs.
    """

    token_ids: NDArray[np.uint32]  # uint32 [n]
    logprobs: NDArray[np.float32]
    valid: NDArray[np.bool_]
    top_ids: NDArray[np.uint32]
    top_logprobs: NDArray[np.float32]  # float32 [n, k], theirs; the others are NaN

    def only(self, rows: list[int]) -> Sampled:
        token_ids, logprobs, valid, top_ids, top_logprobs = self
        return Sampled(token_ids[rows], logprobs[rows], valid[rows], top_ids[rows], top_logprobs[rows])


class Scored(NamedTuple):
    """One entry per token.

    Where the logits held NaN or +inf, or nothing but -inf, logprobs are NaN, and ranks mean nothing.
    """

    logprobs: NDArray[np.float32]  # float32 [m], of the token
    ranks: NDArray[np.uint32]  # uint32 [m], its place among all tokens, from 1, in the order of top_ids
    top_ids: NDArray[np.uint32]  # uint32 [m, k], the most likely tokens, the best first, of equal ones the lowest id
    top_logprobs: NDArray[np.float32]  # float32 [m, k], theirs


def sample(
    logits: NDArray[np.float32],
    rows: Sequence[Row],
    *,
    most_logprobs: int | None = None,
    pool: ThreadPool | None = None,
    portable: bool = False,
) -> Sampled:
    """Draw a token per row, for position len(token_ids).

    Args:
        logits: float32 [n, vocab_size], C-contiguous; -inf is a token that cannot be. Not changed.
        rows: the n rows.
        most_logprobs: the largest num_logprobs; None reads it from the rows, which after a forward pass are in no
            cache: 5 us for 32 of them, of 80 us (a vocabulary of 64) to 320 us (49152) for all sampling.
        pool: threads to share the rows among; None for this one alone.
        portable: without this machine's vector instructions; the result is the same.
    """
    n = len(rows)
    k = most_logprobs
    if k is None:
        k = max([row.sampler.num_logprobs or 0 for row in rows], default=0)
    result = Sampled(
        token_ids=np.empty(n, np.uint32),
        logprobs=np.empty(n, np.float32),
        valid=np.empty(n, np.bool_),
        top_ids=np.zeros((n, k), np.uint32),
        top_logprobs=np.full((n, k), np.nan, np.float32),
    )
    _kernels.sample(
        logits,
        rows,
        token_ids=result.token_ids,
        logprobs=result.logprobs,
        valid=result.valid,
        top_ids=result.top_ids,
        top_logprobs=result.top_logprobs,
        pool=pool,
        portable=portable,
    )
    return result


def score(
    logits: NDArray[np.float32],
    token_ids: NDArray[np.uint32],
    k: int,
    *,
    pool: ThreadPool | None = None,
    portable: bool = False,
) -> Scored:
    """Logprobs and ranks of `token_ids` [m] under `logits` [m, vocab_size], and the k most likely tokens of each row.

    Both arrays are C-contiguous.
    """
    m = len(token_ids)
    result = Scored(
        logprobs=np.empty(m, np.float32),
        ranks=np.empty(m, np.uint32),
        top_ids=np.empty((m, k), np.uint32),
        top_logprobs=np.empty((m, k), np.float32),
    )
    _kernels.score(
        logits,
        token_ids,
        logprobs=result.logprobs,
        ranks=result.ranks,
        top_ids=result.top_ids,
        top_logprobs=result.top_logprobs,
        pool=pool,
        portable=portable,
    )
    return result


def distribution(logits: NDArray[np.float32], row: Row, *, portable: bool = False) -> NDArray[np.float64]:
    """The probabilities [vocab_size] that `sample` draws a row's token from; ValueError if the row is not valid."""
    probabilities = np.empty(len(logits), np.float64)
    if not _kernels.distribution(logits[None], row, probabilities=probabilities, portable=portable):
        raise ValueError("The logits hold NaN or infinity, or leave no token that could be.")
    return probabilities


def uniform(seed: int, position: int) -> float:
    """The number in [0, 1) that decides a draw: of the first token whose cumulated probability, by id, exceeds it."""
    return _kernels.uniform(seed & _LARGEST_SEED, position)


def invalid(params: SamplingParams, vocab_size: int) -> str | None:
    """What is wrong with a request's parameters, as a sentence; None when nothing is."""
    if params.max_tokens < 1:
        return f"max_tokens is {params.max_tokens}, but must be at least 1."
    if params.min_tokens < 0:
        return f"min_tokens is {params.min_tokens}, but must be at least 0."
    if not 0 <= params.temperature < math.inf:
        return f"temperature is {params.temperature}, but must be a finite number of at least 0."
    if params.top_k < 0:
        return f"top_k is {params.top_k}, but must be at least 0."
    for name in ("top_p", "min_p", "typical_p"):
        value = getattr(params, name)
        if not 0 <= value <= 1:
            return f"{name} is {value}, but must be between 0 and 1."
    for name in ("frequency_penalty", "presence_penalty"):
        value = getattr(params, name)
        if not math.isfinite(value):
            return f"{name} is {value}, but must be a finite number."
    if not 0 < params.repetition_penalty < math.inf:
        return f"repetition_penalty is {params.repetition_penalty}, but must be a finite number greater than 0."
    for token, bias in params.logit_bias.items():
        if not math.isfinite(bias):
            return f"logit_bias of token {token} is {bias}, but must be a finite number."
    if params.allowed_token_ids is not None and len(params.allowed_token_ids) == 0:
        return "allowed_token_ids is empty, but must name a token that can be drawn."
    for name in ("logit_bias", "allowed_token_ids", "stop_token_ids", "grammar_end_ids"):
        for token in getattr(params, name) or ():
            if not 0 <= token < vocab_size:
                return f"{name} has token {token}, but the vocabulary is from 0 to {vocab_size - 1}."
    if (budget := params.reasoning_budget) is not None:
        for token in (budget.end_id, *budget.begin_ids):
            if not 0 <= token < vocab_size:
                return f"reasoning_budget has token {token}, but the vocabulary is from 0 to {vocab_size - 1}."
        if budget.tokens < 0:
            return f"reasoning_budget has {budget.tokens} tokens, but must have at least 0."
    for name in ("num_logprobs", "num_prompt_logprobs"):
        count = getattr(params, name)
        if count is not None and not 0 <= count <= vocab_size:
            return f"{name} is {count}, but must be between 0 and the size of the vocabulary, {vocab_size}."
    return None
