"""One request inside the engine: its tokens, how far they are computed, and the KV blocks it holds.

Owns the state of a sequence. Does not know when it runs (`scheduler`), where its blocks come from (`block_manager`)
or how its tokens travel (`publisher`).
"""

from __future__ import annotations

import array
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rbee.sampling_params import SamplingParams


@dataclass(slots=True, eq=False)
class Sequence:
    """A prompt and its output so far; there is no phase, only tokens that are computed and tokens that are not.

    Attributes:
        request_id: the server's name for it, for log lines.
        ring: the transport ring that its tokens go to; unique among live sequences.
        arrival: rank of its submission; smaller is older. Both of the scheduler's queues are in this order.
        token_ids: prompt, then output; C unsigned ints.
        num_prompt_tokens: how many of them are the prompt.
        sampling: what the client asked of the sampler.
        num_computed_tokens: tokens whose keys and values are in `block_table`; 0 again after a preemption.
        block_table: KV blocks in the order of the tokens they hold; C ints.
        paused: its ring is full, so it must not sample.
        paused_ns: while it is paused, when that was first seen; CLOCK_MONOTONIC.
    """

    request_id: str
    ring: int
    arrival: int
    token_ids: array.array[int]
    sampling: SamplingParams
    num_prompt_tokens: int = field(init=False)
    num_computed_tokens: int = 0
    block_table: array.array[int] = field(default_factory=lambda: array.array("i"))
    paused: bool = False
    paused_ns: int = 0

    def __post_init__(self) -> None:
        self.num_prompt_tokens = len(self.token_ids)

    @property
    def num_tokens(self) -> int:
        """Prompt plus output so far."""
        return len(self.token_ids)

    @property
    def num_output_tokens(self) -> int:
        """Tokens sampled so far."""
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def num_uncomputed_tokens(self) -> int:
        """Tokens that must still run through the model before the next one can be sampled; at least 1."""
        return len(self.token_ids) - self.num_computed_tokens
