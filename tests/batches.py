"""What the drain has for a sequence, made up: batches of plain tokens, and of tokens with side records."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from rbee.messages import SIDE_RECORD
from rbee.server.link.sinks import TokenBatch

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    Record = tuple[int, float]


def batch(token_ids: Iterable[int], reason: int = 0, cached_tokens: int = 0) -> TokenBatch:
    """Tokens of a sequence without logprobs, with commit times 1, 2, 3 ..."""
    return record_batch([(token_id, math.nan) for token_id in token_ids], reason, cached_tokens)


def record_batch(records: Sequence[Record], reason: int = 0, cached_tokens: int = 0) -> TokenBatch:
    """Any records, with commit times 1, 2, 3 ..."""
    times = list(range(1, len(records) + 1))
    token_ids, logprobs = [token_id for token_id, _ in records], [logprob for _, logprob in records]
    return TokenBatch(token_ids, logprobs, times, reason, cached_tokens)


def scored(token_id: int, logprob: float, *top: Record) -> list[Record]:
    """The records of an output token and the most likely ones at its place."""
    return [(token_id, logprob), *((other | SIDE_RECORD, other_logprob) for other, other_logprob in top)]


def scored_prompt(rank: int, logprob: float, *top: Record) -> list[Record]:
    """The records of a prompt token, and of the most likely ones at its place."""
    return [(other | SIDE_RECORD, other_logprob) for other, other_logprob in ((rank, logprob), *top)]
