"""What one request for an embedding asks: validated values, no behaviour.

Owns their meaning. Does not know what a model says of pooling (`rbee.models.pooling`).
"""

from __future__ import annotations

from typing import Literal

import msgspec

PoolingMethod = Literal["mean", "last", "cls"]


class PoolingParams(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How the hidden states of one sequence become one vector.

    A hidden state is what the last layer gives for a token, after the final norm: what the output head reads.
    """

    method: PoolingMethod  # the mean of all tokens' hidden states, the last token's, or the first one's (cls)
    dimensions: int = 0  # keep so many values, the first ones; 0 keeps all
    normalize: bool = True  # then scale the vector to length 1
