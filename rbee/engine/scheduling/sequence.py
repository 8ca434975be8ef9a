"""One request inside the engine: its tokens, how far they are computed, and the KV blocks it holds.

Owns the state of a sequence. Does not know when it runs, where its blocks come from or how its tokens travel.
"""

from __future__ import annotations

import array
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rbee.pooling_params import PoolingParams
    from rbee.sampling_params import SamplingParams


# A priority of p delays a request's rank by p times this, so a negative one overtakes requests that came at most that
# much earlier. None waits for ever: in the end it is older than everything that could overtake it.
PRIORITY_NS = 10_000_000_000


@dataclass(slots=True, eq=False)
class Sequence:
    """A prompt and its output so far. It has no phase, only computed and uncomputed tokens."""

    request_id: str  # the server's name for it, for log lines
    ring: int  # the transport ring that its tokens go to; unique among live sequences
    rank: tuple[int, int]  # arrival in ns, delayed by the priority, then the submission's number; smaller runs first
    token_ids: array.array[int]  # prompt, then output; C unsigned ints
    sampling: SamplingParams  # what the client asked of the sampler
    cache_salt: str = ""  # only sequences with the same salt share cached blocks
    pooling: PoolingParams | None = None  # it ends with its prompt, of which it gives a vector
    num_prompt_tokens: int = field(init=False)  # how many of them are the prompt
    num_computed_tokens: int = 0  # tokens whose keys and values are in `block_table`; 0 again after a preemption
    num_cached_tokens: int = 0  # of the prompt's tokens, how many were in the cache when it first ran
    num_scored_tokens: int = 1  # of the prompt's tokens, those with published logprobs; the first counts as one
    num_pooled_tokens: int = 0  # of the prompt's tokens, those before which no hidden state is needed any more
    block_table: array.array[int] = field(default_factory=lambda: array.array("i"))  # in the order of its tokens
    num_unseen_blocks: int = 0  # the first ones of `block_table` that it has given up: no later token sees them
    block_hashes: list[bytes] = field(default_factory=list)  # of full blocks, as far as the block manager needs
    num_preemptions: int = 0  # how often the scheduler took its blocks away
    paused: bool = False  # its ring has too little space, so it must not sample
    max_chunk: int = 0  # tokens that one step may compute of it at most, because of what its ring can take; 0: no limit

    def __post_init__(self) -> None:
        self.num_prompt_tokens = len(self.token_ids)

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def num_output_tokens(self) -> int:
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def num_uncomputed_tokens(self) -> int:
        """Tokens to run through the model before the next one can be sampled; at least 1."""
        return len(self.token_ids) - self.num_computed_tokens

    @property
    def scores_prompt(self) -> bool:
        """Whether the prompt's logits are still needed."""
        return self.sampling.num_prompt_logprobs is not None and self.num_scored_tokens < self.num_prompt_tokens

    @property
    def needs_whole_prompt(self) -> bool:
        """Whether more than the last token has to be computed, so that the prompt cannot come from the cache."""
        return self.scores_prompt or (self.pooling is not None and self.pooling.method != "last")

    def pooled_positions(self, start: int, end: int) -> range:
        """Those of the positions [start, end) whose hidden states its vector is made of, and does not have yet."""
        if self.pooling is None:
            return range(0)
        first = self.num_prompt_tokens - 1 if self.pooling.method == "last" else 0
        last = 1 if self.pooling.method == "cls" else self.num_prompt_tokens
        return range(max(start, first, self.num_pooled_tokens), min(end, last))
