"""Gathers the records of a step and hands them to the transport in one commit.

Owns the arrays of a commit and the meaning of its records (`rbee.messages.SIDE_RECORD`). Does not know why a sequence
ended or how a ring works.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from rbee.messages import SIDE_RECORD

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from rbee.engine.sampler import Sampled, Scored
    from rbee.messages import FinishReason
    from rbee.transport import Producer

_SIDE_RECORD = np.uint32(SIDE_RECORD)
_LARGEST_DETAIL = (1 << 24) - 1


class _Records(NamedTuple):
    """Arrays [n]; the records of one ring are in order."""

    rings: NDArray[np.uint32]
    tokens: NDArray[np.uint32]
    logprobs: NDArray[np.float32]


_NO_RECORDS = _Records(np.empty(0, np.uint32), np.empty(0, np.uint32), np.empty(0, np.float32))


class Publisher:
    """Gathers records; `commit()` publishes them. A ring's records keep the order of the calls."""

    def __init__(self, producer: Producer) -> None:
        self._producer = producer
        self._records: list[_Records] = []
        self._finished: dict[int, int] = {}

    def start(self, ring: int) -> None:
        """Write, at once, that the request of `ring` begins to run."""
        self._producer.note_start(ring)

    def tokens(self, rings: list[int], sampled: Sampled, num_side_records: list[int]) -> None:
        """Add a token for each of n rings, followed by that many of its most likely tokens as side records."""
        ring_array = np.array(rings, np.uint32)
        token_ids, logprobs, _, top_ids, top_logprobs = sampled
        num_top = top_ids.shape[1]
        if num_top == 0:
            self._records.append(_Records(ring_array, token_ids, logprobs))
            return
        wanted = np.arange(num_top + 1) <= np.array(num_side_records)[:, None]
        self._records.append(
            _Records(
                np.broadcast_to(ring_array[:, None], wanted.shape)[wanted],
                np.column_stack([token_ids, top_ids | _SIDE_RECORD])[wanted],
                np.column_stack([logprobs, top_logprobs])[wanted],
            )
        )

    def prompt_scores(self, ring: int, scored: Scored) -> None:
        """Add side records of a prompt's tokens: rank and logprob of each, then the most likely ones in its place."""
        records = np.column_stack([scored.ranks, scored.top_ids]).ravel() | _SIDE_RECORD
        rings = np.full(len(records), ring, np.uint32)
        logprobs = np.column_stack([scored.logprobs, scored.top_logprobs]).ravel()
        self._records.append(_Records(rings, records, logprobs))

    def values(self, ring: int, first: int, values: NDArray[np.float32]) -> None:
        """Add side records for values of a vector, which are at its indices from `first` on."""
        indices = np.arange(first, first + len(values), dtype=np.uint32)
        self._records.append(_Records(np.full(len(values), ring, np.uint32), indices | _SIDE_RECORD, values))

    def number(self, ring: int, number: int) -> None:
        """Add a side record that is a number below 2^31."""
        record = np.array([number | SIDE_RECORD], np.uint32)
        self._records.append(_Records(np.array([ring], np.uint32), record, np.array([np.nan], np.float32)))

    def finish(self, ring: int, reason: FinishReason, num_cached_tokens: int = 0) -> None:
        """End `ring` behind its last token."""
        assert ring not in self._finished, "a ring ends once"
        self._finished[ring] = reason | min(num_cached_tokens, _LARGEST_DETAIL) << 8

    def commit(self) -> bool:
        """Publish; False: there was nothing. TransportError if a ring is not open or has too little space."""
        if not self._records and not self._finished:
            return False
        match self._records:
            case []:
                records = _NO_RECORDS
            case [records]:
                pass
            case several:
                records = _Records(*(np.concatenate(column) for column in zip(*several, strict=True)))
        if self._finished:
            finished = np.fromiter(self._finished.keys(), np.uint32, len(self._finished))
            finishes = np.fromiter(self._finished.values(), np.uint32, len(self._finished))
            self._producer.commit(*records, finished, finishes)
            self._finished.clear()
        else:
            self._producer.commit(*records)
        self._records.clear()
        return True
