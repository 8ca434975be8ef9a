"""From the hidden states of a sequence's tokens to its vector.

Owns the arithmetic, in double precision, so that the chunks in which a prompt is computed do not show. Does not know
which tokens' hidden states are wanted (`Sequence.pooled_positions`), or how a vector travels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from rbee.pooling_params import PoolingParams


class Pool:
    """The hidden states of one sequence so far: their sum and number. Of one alone the mean is itself."""

    def __init__(self, params: PoolingParams) -> None:
        self._params = params
        self._sum: NDArray[np.float64] | None = None
        self._count = 0

    def add(self, hidden_states: NDArray[np.float32]) -> None:
        """Take the hidden states [n, hidden_size] of n further tokens."""
        total = hidden_states.sum(axis=0, dtype=np.float64)
        self._sum = total if self._sum is None else self._sum + total
        self._count += len(hidden_states)

    def vector(self) -> NDArray[np.float32] | None:
        """Their mean, cut and scaled as asked for; None if it holds a value that is not finite.

        A vector of zeros has no direction, and stays as it is.
        """
        assert self._sum is not None, "a prompt has a token"
        vector = self._sum / self._count
        if self._params.dimensions:
            vector = vector[: self._params.dimensions]
        if not np.isfinite(vector).all():
            return None
        if self._params.normalize and (length := np.linalg.norm(vector)):
            vector = vector / length
        return vector.astype(np.float32)
