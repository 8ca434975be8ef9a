"""What one request asks of the sampler: validated values, no behaviour.

The server fills it from whatever protocol the client speaks, the engine obeys it. Neither defaults nor limits of a
protocol are known here.
"""

from __future__ import annotations

import msgspec


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True):
    """Parameters of one sequence.

    Attributes:
        max_tokens: tokens to generate at most, >= 1; the last one ends the sequence with `length`.
        temperature: 0 is greedy, otherwise logits are divided by it.
        top_k: keep only the k most likely tokens; 0 keeps all.
        top_p: keep the smallest set of most likely tokens whose probability reaches top_p; 1 keeps all.
        seed: the draw for a token is a function of (seed, its position) and of nothing else that runs. The server
            picks one when the client did not.
        stop_token_ids: a sampled token among these ends the sequence with `stop`. End-of-sequence tokens are in
            here too (unless the client asked to ignore them): the engine knows no vocabulary. The stop token itself
            is published.
    """

    max_tokens: int
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    stop_token_ids: tuple[int, ...] = ()
