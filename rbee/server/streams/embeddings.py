"""The vectors of one request's prompts: submitted to the engine a few at a time, collected, and ended together.

Owns how many of them the engine has at once, and that nothing of a request is left there when it is over. Does not know
how a request is read, or how vectors are written.
"""

from __future__ import annotations

import array
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from rbee.messages import FinishReason, Submit, pack_token_ids
from rbee.sampling_params import SamplingParams
from rbee.server.errors import deadline_passed
from rbee.server.link.sequences import SequenceHandle, Submitted
from rbee.server.reports.finished import Figures
from rbee.server.streams.account import OpenSequences
from rbee.server.streams.exchange import salt_of
from rbee.server.streams.live import Reply, SequenceHandles
from rbee.server.streams.outcome import finish_refusal

if TYPE_CHECKING:
    from rbee.pooling_params import PoolingParams
    from rbee.server.errors import Refusal
    from rbee.server.http.writer import Writer
    from rbee.server.link.admission import Requester
    from rbee.server.link.sinks import TokenBatch
    from rbee.server.streams.exchange import Backend

# Prompts of a request that the engine has at once: short ones together fill a step, and the next ones wait there
# meanwhile. A request with more keeps so many places until it is through, and leaves the others to other clients.
AT_ONCE = 64

_NOTHING_SAMPLED = SamplingParams(max_tokens=1)


@dataclass(frozen=True, kw_only=True)
class Embeddings:
    """A checked request for vectors."""

    received_ns: int  # when the server had the whole request, CLOCK_MONOTONIC
    prompts: list[list[int]]  # token ids, of each at least one
    pooling: PoolingParams
    priority: int = 0  # smaller runs earlier
    deadline_ns: int = 0  # when it ends at the latest, CLOCK_MONOTONIC; 0 is never
    cache_salt: str = ""  # only requests with the same salt share cached prefixes

    @property
    def num_tokens(self) -> int:
        return sum(map(len, self.prompts))


class EmbeddingsAccount:
    """The `rbee.server.link.sinks.Account` of one such request, and what the reports read of it."""

    gaps = None

    def __init__(self, embeddings: Embeddings, answer_id: str) -> None:
        self.answer_id = answer_id
        self.refusal = ""  # the code of the error that ended it
        self._embeddings = embeddings
        self._started_ns = 0
        self._cached_tokens: int | None = None
        self._reasons: dict[str, None] = {}
        self._open = OpenSequences()
        self.when_ended = self._open.when_ended

    def begin(self) -> None:
        """A prompt is submitted."""
        self._open.begin()

    def take(self, index: int, times: tuple[int, int, int, int], cached_tokens: int | None) -> None:  # noqa: ARG002 - of choices
        started_ns = times[0]
        if started_ns:
            self._started_ns = min(self._started_ns or started_ns, started_ns)
        if cached_tokens is not None:
            self._cached_tokens = (self._cached_tokens or 0) + cached_tokens

    def end(self, index: int, reason: int) -> None:  # noqa: ARG002 - of choices
        self._reasons[FinishReason(reason).name.lower()] = None
        self._open.end()

    def figures(self) -> Figures:
        return Figures(
            answer_id=self.answer_id,
            prompt_tokens=self._embeddings.num_tokens,
            completion_tokens=0,
            cached_tokens=self._cached_tokens,
            received_ns=self._embeddings.received_ns,
            started_ns=self._started_ns,
            first_ns=0,
            last_ns=0,
            gap_ns=None,
            finish=",".join(self._reasons),
            refusal=self.refusal,
            sampling=None,
        )


async def submit(
    backend: Backend, embeddings: Embeddings, account: EmbeddingsAccount, writer: Writer, requester: Requester
) -> EmbeddingsReply | None:
    """Submit the first prompts to the engine, as many as it gets at once; None: the client has left.

    Raises:
        Refusal: there is no room for them.
    """
    backend.supervisor.check_ready()
    client = backend.supervisor.client
    number = min(len(embeddings.prompts), AT_ONCE, client.most_at_once(requester))
    tokens = sum(map(len, embeddings.prompts[:number]))
    await client.make_room(number, tokens, requester)
    if writer.closed:
        return None
    backend.supervisor.check_ready()
    if 0 < embeddings.deadline_ns <= time.monotonic_ns():
        raise deadline_passed()
    backend.supervisor.client.check_room(number, tokens, requester)
    reply = EmbeddingsReply(backend, embeddings, account, requester)
    reply.submit_first(number)
    return reply


class EmbeddingsReply(Reply):
    """Gathers the vectors. The end of one prompt submits the next; an error of one ends all."""

    sequences: SequenceHandles

    def __init__(
        self, backend: Backend, embeddings: Embeddings, account: EmbeddingsAccount, requester: Requester
    ) -> None:
        super().__init__()
        self.sequences = SequenceHandles()
        self._vectors: list[array.array[float]] = [array.array("f") for _ in embeddings.prompts]
        self.refusal: Refusal | None = None  # set after any end that leaves no vector
        self._backend = backend
        self._embeddings = embeddings
        self._account = account
        self._requester = requester
        self._num_submitted = self._num_ended = 0

    async def collect(self, writer: Writer) -> list[array.array[float]] | None:
        """The vector of each prompt, in order; None: the client of `writer` has left.

        Raises:
            Refusal: one did not come to its end.
        """
        try:
            writer.open(self)
            await self.done
        finally:
            self.sequences.cancel()
            writer.close()
        if writer.closed:
            return None
        if self.refusal is not None:
            self._account.refusal = self.refusal.code or ""
            raise self.refusal
        return self._vectors

    def submit_first(self, number: int) -> None:
        """Submit so many prompts, for which there must be rings."""
        self._num_submitted = number
        for index in range(number):
            self._submit(index)

    def end(self, reason: int) -> None:
        """A prompt has ended for this FinishReason."""
        if self.done.done():
            return
        refusal = finish_refusal(reason)
        if refusal is not None:
            self.fail(refusal)
            return
        self._num_ended += 1
        if self._num_submitted < len(self._vectors):
            self._backend.supervisor.client.when_delivered(partial(self._submit, self._num_submitted))
            self._num_submitted += 1
        elif self._num_ended == len(self._vectors):
            self._end()

    def fail(self, refusal: Refusal) -> None:
        if not self.done.done():
            self.refusal = refusal
            self._end()

    def on_pause(self) -> None: ...

    def on_resume(self) -> None: ...

    def on_half_closed(self) -> None: ...

    def _submit(self, index: int) -> None:
        if self.done.done():
            return
        embeddings = self._embeddings
        client = self._backend.supervisor.client
        handle = SequenceHandle(client, 0, 0)
        record = Submit(
            request_id=self._account.answer_id,
            ring=0,
            generation=0,
            prompt=pack_token_ids(embeddings.prompts[index]),
            sampling=_NOTHING_SAMPLED,
            received_ns=embeddings.received_ns,
            priority=embeddings.priority,
            deadline_ns=embeddings.deadline_ns,
            cache_salt=salt_of(self._backend, embeddings.cache_salt, self._requester),
            pooling=embeddings.pooling,
        )
        self._account.begin()
        self.sequences.append(handle)
        sink = _VectorSink(self, self._vectors[index])
        client.submit(Submitted(record, sink, False, self._requester.caller, (self._account, index), handle))


class _VectorSink:
    """The `TokenSink` of one prompt, whose records are the values of its vector."""

    def __init__(self, reply: EmbeddingsReply, vector: array.array[float]) -> None:
        self._reply = reply
        self._vector = vector

    def deliver(self, batch: TokenBatch) -> int:
        self._vector.extend(batch.logprobs)
        if batch.reason:
            self._reply.end(batch.reason)
        return batch.reason

    def fail(self, error: Refusal) -> None:
        self._reply.fail(error)
