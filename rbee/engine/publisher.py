"""Gathers what a step has to say and hands it to the transport in one commit.

Owns the arrays of a commit, and which records stand for what in a ring (see `rbee.messages.SIDE_RECORD`). Does not know
why a sequence ended or how a ring works.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from rbee.messages import SIDE_RECORD

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from rbee.messages import FinishReason
    from rbee.transport import Producer

_SIDE_RECORD = np.uint32(SIDE_RECORD)
_LARGEST_DETAIL = (1 << 24) - 1


class _Records(NamedTuple):
    """Records for rings; all [n], a ring's own in their order."""

    rings: NDArray[np.uint32]
    tokens: NDArray[np.uint32]
    logprobs: NDArray[np.float32]


_NO_RECORDS = _Records(np.empty(0, np.uint32), np.empty(0, np.uint32), np.empty(0, np.float32))


class Publisher:
    """The engine's end of the rings, seen from the step."""

    def __init__(self, producer: Producer) -> None:
        self._producer = producer
        self._records: list[_Records] = []
        self._finished: dict[int, int] = {}

    def tokens(self, rings: NDArray[np.uint32], tokens: NDArray[np.uint32], logprobs: NDArray[np.float32]) -> None:
        """With the next commit: an output token for each of these rings; all [n]."""
        self._records.append(_Records(rings, tokens, logprobs))

    def tokens_with_side_records(
        self,
        rings: NDArray[np.uint32],
        tokens: NDArray[np.uint32],
        logprobs: NDArray[np.float32],
        *,
        top_ids: NDArray[np.uint32],
        top_logprobs: NDArray[np.float32],
        num_side_records: NDArray[np.int64],
    ) -> None:
        """With the next commit: an output token for each ring, and behind it side records of the most likely ones.

        Args:
            rings: [n].
            tokens: [n].
            logprobs: [n].
            top_ids: [n, k].
            top_logprobs: [n, k].
            num_side_records: [n], how many of the k a ring gets.
        """
        wanted = np.arange(top_ids.shape[1] + 1) <= num_side_records[:, None]
        self._records.append(
            _Records(
                np.broadcast_to(rings[:, None], wanted.shape)[wanted],
                np.column_stack([tokens, top_ids | _SIDE_RECORD])[wanted],
                np.column_stack([logprobs, top_logprobs])[wanted],
            )
        )

    def side_records(
        self,
        ring: int,
        tokens: NDArray[np.uint32],
        logprobs: NDArray[np.float32],
        *,
        top_ids: NDArray[np.uint32],
        top_logprobs: NDArray[np.float32],
    ) -> None:
        """With the next commit: side records of one ring's prompt tokens [m], each with the most likely ones [m, k]."""
        records = np.column_stack([tokens, top_ids]).ravel() | _SIDE_RECORD
        rings = np.full(len(records), ring, np.uint32)
        self._records.append(_Records(rings, records, np.column_stack([logprobs, top_logprobs]).ravel()))

    def number(self, ring: int, number: int) -> None:
        """With the next commit: a side record for this ring that is a number below 2^31."""
        self._records.append(
            _Records(
                np.array([ring], np.uint32), np.array([number | SIDE_RECORD], np.uint32), np.array([np.nan], np.float32)
            )
        )

    def finish(self, ring: int, reason: FinishReason, num_cached_tokens: int = 0) -> None:
        """With the next commit, `ring` ends with `reason`, after its last token."""
        assert ring not in self._finished, "a ring ends once"
        self._finished[ring] = reason | min(num_cached_tokens, _LARGEST_DETAIL) << 8

    def commit(self) -> bool:
        """Publish all that was gathered. False: there was nothing.

        Raises:
            TransportError: a ring that is not open, or has no space; nothing was published then.
        """
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
