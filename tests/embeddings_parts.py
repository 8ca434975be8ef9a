"""What the tests of embeddings expect: the synthetic model's vectors, and any model's hidden states pooled."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from rbee.models import synthetic
from rbee.pooling_params import PoolingParams

if TYPE_CHECKING:
    from numpy.typing import NDArray

MEAN = PoolingParams(method="mean")
LAST = PoolingParams(method="last")
CLS = PoolingParams(method="cls")


def pooled(hidden_states: NDArray[np.float64], params: PoolingParams) -> NDArray[np.float64]:
    """The vector of a sequence with these hidden states [length, hidden_size]."""
    vector = {"mean": hidden_states.mean(axis=0), "last": hidden_states[-1], "cls": hidden_states[0]}[params.method]
    vector = vector[: params.dimensions or None]
    length = float(np.linalg.norm(vector)) if params.normalize else 1.0
    result: NDArray[np.float64] = vector / length
    return result


def synthetic_vector(prompt: list[int], params: PoolingParams = MEAN) -> NDArray[np.float64]:
    """The synthetic model's."""
    states = [synthetic.hidden_state(synthetic.prompt_hash(prompt[: end + 1])) for end in range(len(prompt))]
    return pooled(np.array(states), params)
