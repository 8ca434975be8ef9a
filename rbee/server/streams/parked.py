"""Where a sequence ends up whose stream is not asked for yet.

Owns what of such a sequence is delivered early, and how a reply gets it. Does not know why it is early.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from rbee.messages import SIDE_RECORD, FinishReason
from rbee.server.errors import RefusalKind
from rbee.server.streams.choices import ChoiceSink

if TYPE_CHECKING:
    from rbee.server.errors import Refusal
    from rbee.server.link.sinks import TokenBatch
    from rbee.server.streams.direct_reply import DirectReply


class ParkedSink:
    """A `TokenSink` without a reply. Its ring is paused: little is delivered before the engine or the sequence ends."""

    def __init__(self) -> None:
        self.batches: list[TokenBatch] = []
        self.refusal: Refusal | None = None
        self.ended = asyncio.Event()

    @property
    def only_late(self) -> bool:
        """Whether its deadline passed before its first token, and that is all."""
        if any(_has_token(batch) for batch in self.batches):
            return False
        if self.refusal is not None:
            return self.refusal.kind is RefusalKind.TIMED_OUT
        return any(batch.reason == FinishReason.DEADLINE for batch in self.batches)

    def deliver(self, batch: TokenBatch) -> int:
        self.batches.append(batch)
        if batch.reason:
            self.ended.set()
        return batch.reason

    def fail(self, error: Refusal) -> None:
        self.refusal = error
        self.ended.set()

    def pass_on(self, sink: ChoiceSink | DirectReply) -> None:
        """Give a reply what came early. Only one that Python writes can get tokens so."""
        if isinstance(sink, ChoiceSink):
            for batch in self.batches:
                sink.deliver(batch)
        if self.refusal is not None:
            sink.fail(self.refusal)


def _has_token(batch: TokenBatch) -> bool:
    return any(not token_id & SIDE_RECORD for token_id in batch.token_ids)
