# ruff: noqa: PYI021 - this file is where the native module is documented
"""The sampling kernels in C++ (`native/kernels/`), one row after the other, without the GIL.

Results are written to arrays of the caller's. All arrays are C-contiguous. `portable` avoids this machine's vector
instructions; the results are the same bit for bit.
"""

from array import array
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

class RowParams:
    """The parameters of a sequence, of which `rbee.engine.sampler.invalid` has nothing to say."""

    def __init__(
        self,
        *,
        temperature: float,
        top_k: int,
        top_p: float,
        min_p: float,
        typical_p: float,
        frequency_penalty: float,
        presence_penalty: float,
        repetition_penalty: float,
        min_tokens: int,
        seed: int,
        logit_bias: list[tuple[int, float]],
        stop_token_ids: Sequence[int],
        allowed_token_ids: Sequence[int] | None,
        num_logprobs: int | None,
    ) -> None:
        """As in SamplingParams; the seed as an unsigned 64-bit number."""

def sample(
    logits: NDArray[np.float32],
    rows: Sequence[tuple[RowParams, array[int], int]],
    *,
    token_ids: NDArray[np.uint32],
    logprobs: NDArray[np.float32],
    valid: NDArray[np.bool_],
    top_ids: NDArray[np.uint32],
    top_logprobs: NDArray[np.float32],
    portable: bool = False,
) -> None:
    """Sample a token for each row of the logits [n, vocab_size]: (parameters, prompt and output, prompt's length).

    Writes token_ids [n] and valid [n]; and for valid rows that ask for them logprobs [n] and the first num_logprobs of
    top_ids and top_logprobs [n, at least that many]. The logprob of another row is NaN; all else in the two tables
    stays what it was.

    Raises:
        ValueError: sizes do not fit.
        TypeError: an array of another type.
    """

def score(
    logits: NDArray[np.float32],
    token_ids: NDArray[np.uint32],
    *,
    logprobs: NDArray[np.float32],
    top_ids: NDArray[np.uint32],
    top_logprobs: NDArray[np.float32],
    portable: bool = False,
) -> None:
    """Write the logprobs [m] of one token per row of the logits, and the best k of each row to top_* [m, k].

    NaN, and ids of 0, in rows that hold NaN or infinity, or nothing but -inf.

    Raises:
        ValueError: sizes do not fit.
        TypeError: an array of another type.
    """

def distribution(
    logits: NDArray[np.float32],
    row: tuple[RowParams, array[int], int],
    *,
    probabilities: NDArray[np.float64],
    portable: bool = False,
) -> bool:
    """Write the probabilities [vocab_size] that `sample` draws from, given logits [1, vocab_size].

    False, and zeros, if the row is not valid.
    """

def uniform(seed: int, position: int) -> float:
    """The number in [0, 1) that decides what is drawn at this position."""
