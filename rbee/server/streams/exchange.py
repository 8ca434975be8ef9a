"""One generation and its response: submitted to the engine, streamed or collected, and ended.

Owns this order, and that nothing of a generation is left when its response is over, unless the client may come back for
the rest. Does not know how a request is read, nor what becomes of the tokens (`rbee.server.streams.replies`).
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from rbee.server.errors import deadline_passed
from rbee.server.http.writer import writer_of
from rbee.server.link.admission import ANYONE, Requester
from rbee.server.link.sequences import Choice, DirectTarget
from rbee.server.streams.account import GenerationAccount
from rbee.server.streams.choices import ChoiceSink, make_choices
from rbee.server.streams.direct_reply import DirectReply, make_outlet
from rbee.server.streams.live import SequenceHandles
from rbee.server.streams.parked import ParkedSink
from rbee.server.streams.replies import CollectedReply, StreamedReply
from rbee.server.streams.resumption import ResumableReply

if TYPE_CHECKING:
    from collections.abc import Sequence

    from starlette.types import Receive, Scope, Send

    from rbee.sampling_params import SamplingParams
    from rbee.server.errors import Refusal
    from rbee.server.http.writer import Writer
    from rbee.server.link.sequences import SequenceHandle
    from rbee.server.link.sinks import TokenSink
    from rbee.server.link.supervisor import Supervisor
    from rbee.server.streams.dialect import Dialect
    from rbee.server.streams.generation import Generation
    from rbee.server.streams.live import LiveReply, ReplyWatch
    from rbee.server.streams.resumption import Ticket
    from rbee.server.text.grammars import GrammarChecks
    from rbee.server.text.tokenizer import TextCodec


@dataclass(frozen=True)
class Backend:
    """What every generation of a server needs."""

    supervisor: Supervisor  # of the engine that runs it
    codec: TextCodec  # of the served model
    watch: ReplyWatch  # checks the replies that are being written
    share_prefix_cache: bool = False  # between the holders of several API keys
    grammars: GrammarChecks | None = None  # None: no generation has a grammar


class GenerationResponse(Response):
    """Runs a generation and answers with it: streamed, or collected and sent whole.

    Nothing is submitted before the response is asked for, and nothing is sent before the engine has the request, so
    that a refusal has its true status. A `ticket` lets the client resume the stream.
    """

    def __init__(
        self,
        backend: Backend,
        generation: Generation,
        dialect: Dialect,
        *,
        stream: bool,
        ticket: Ticket | None = None,
    ) -> None:
        self.background = None
        self._backend = backend
        self._generation = generation
        self._dialect = dialect
        self._stream = stream
        self._ticket = ticket

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        writer, requester, generation = writer_of(scope, receive, send), requester_of(scope), self._generation
        if generation.grammar:
            assert self._backend.grammars is not None, "who takes grammars can check them"
            await self._backend.grammars.check(
                generation.grammar,
                generation.grammar_param,
                generation.grammar_parts,
                deadline_ns=generation.deadline_ns,
                wanted=lambda: not writer.closed,
                holder=requester.holder,
            )
        client = self._backend.supervisor.client
        await client.make_room(generation.num_sequences, generation.n * generation.num_prompt_tokens, requester)
        if writer.closed:
            raise ClientDisconnect
        account = GenerationAccount(generation, self._dialect.answer_id)
        if self._stream:
            reply = self._start(writer, requester, account)
            _note(scope, account)
            await write_stream(reply, writer, self._backend.watch)
        else:
            response = Response(await self._collect(scope, writer, requester, account))
            response.raw_headers.extend(self._dialect.answer_headers)
            await response(scope, receive, send)

    def _start(self, writer: Writer, requester: Requester, account: GenerationAccount) -> LiveReply:
        backend, generation, dialect, ticket = self._backend, self._generation, self._dialect, self._ticket
        if ticket is None:
            reply, sinks = _make_reply(backend, generation, dialect, writer)
            _bind(reply, sinks, _submit(backend, generation, dialect, sinks, account, requester=requester), account)
            return reply
        assert generation.num_sequences == 1, "the ids of events count the tokens of one choice"
        resumable = ResumableReply(writer, dialect, ticket.streams, ticket.window)
        sinks = make_choices(backend.codec, generation, resumable, keep_text=generation.keep_text)
        _bind(resumable, sinks, _submit(backend, generation, dialect, sinks, account, requester=requester), account)
        ticket.streams.add(resumable, ticket.owner, *ticket.names)
        return resumable

    async def _collect(self, scope: Scope, writer: Writer, requester: Requester, account: GenerationAccount) -> bytes:
        """Wait for the end. Returns the body of the whole answer."""
        backend, generation = self._backend, self._generation
        reply = CollectedReply(generation.num_sequences, per_prompt=generation.n)
        sinks = make_choices(backend.codec, generation, reply, keep_text=True)
        sequences = _submit(backend, generation, self._dialect, sinks, account, requester=requester, streamed=False)
        _bind(reply, sinks, sequences, account)
        _note(scope, account)
        try:
            writer.open(reply)
            await reply.done
        finally:
            reply.sequences.cancel()
            writer.close()
        if writer.closed:
            raise ClientDisconnect
        if reply.refusal is not None:
            raise reply.refusal
        reply.outcome.timings = account.timings()
        # Long lists of logprobs take their time: a thread leaves the event loop to the streams beside it.
        if generation.has_logprobs or generation.scores_prompts:
            return await asyncio.to_thread(self._dialect.answer, reply.choices, reply.outcome)
        return self._dialect.answer(reply.choices, reply.outcome)


class ParkedGeneration:
    """A generation that runs before its stream is asked for: its tokens wait in their rings until `claim`.

    A full ring pauses its sequence, as a slow reader's does, and --slow-reader-timeout then ends it. The caller awaits
    `EngineClient.make_room` before, bounds how long a generation may stay unclaimed, and then ends it.

    Raises:
        Refusal: the engine does not take it.
    """

    def __init__(
        self, backend: Backend, generation: Generation, dialect: Dialect, requester: Requester = ANYONE
    ) -> None:
        self._backend = backend
        self._generation = generation
        self._dialect = dialect
        self._parked = [ParkedSink() for _ in range(generation.num_sequences)]
        self._reply: LiveReply | None = None  # once it is claimed
        self.account = GenerationAccount(generation, dialect.answer_id)
        self._sequences = _submit(backend, generation, dialect, self._parked, self.account, requester=requester)
        for sequence in self._sequences:
            sequence.pause()

    def cancel(self) -> None:
        """Discard the answer. Harmless after the end."""
        for sequence in self._sequences:
            sequence.cancel()

    def end(self, refusal: Refusal) -> None:
        """End the answer with an error in place of what is missing, also of what waits in the rings.

        Harmless after the end.
        """
        if self._reply is None:
            self.cancel()
            for parked in self._parked:
                parked.fail(refusal)
        elif not self._reply.done.done():
            self._reply.fail(refusal)

    async def check_deadline(self) -> None:
        """To be awaited before `claim`: returns at once before the deadline, else when the engine has ended it.

        Raises:
            Refusal: no token came before the deadline.
        """
        if not 0 < self._generation.deadline_ns <= time.monotonic_ns():
            return
        for sequence, parked in zip(self._sequences, self._parked, strict=True):
            sequence.resume()
            await parked.ended.wait()
        if all(parked.only_late for parked in self._parked):
            raise deadline_passed()

    def claim(self) -> Response:
        """The response that streams it from its first token; once only."""
        return _ClaimedResponse(self)

    def attach(self, writer: Writer) -> LiveReply:
        """The reply that writes it to `writer`."""
        early = any(parked.batches or parked.refusal for parked in self._parked)
        reply, sinks = _make_reply(self._backend, self._generation, self._dialect, writer, may_be_direct=not early)
        _bind(reply, sinks, self._sequences, self.account)
        self._reply = reply
        for sequence, sink, parked in zip(self._sequences, sinks, self._parked, strict=True):
            sequence.redirect(_target(sink))
            parked.pass_on(sink)
        return reply

    @property
    def backend(self) -> Backend:
        return self._backend


class _ClaimedResponse(Response):
    def __init__(self, parked: ParkedGeneration) -> None:
        self.background = None
        self._parked = parked

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        writer = writer_of(scope, receive, send)
        reply = self._parked.attach(writer)
        _note(scope, self._parked.account)
        await write_stream(reply, writer, self._parked.backend.watch)


class Resumption(Response):
    """The rest of a stream, after the event with `last_id`, on another connection."""

    def __init__(self, reply: ResumableReply, last_id: int, watch: ReplyWatch) -> None:
        self.background = None
        self._reply = reply
        self._last_id = last_id
        self._watch = watch

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        writer = writer_of(scope, receive, send)
        self._reply.attach(writer, self._last_id)
        scope.setdefault("state", {})["stream_id"] = self._reply.answer_id
        await write_stream(self._reply, writer, self._watch)


async def write_stream(reply: LiveReply, writer: Writer, watch: ReplyWatch) -> None:
    """Write `reply` as the response of `writer`, until its end, or until another response takes it over."""
    done = reply.done
    watch.add(reply)
    try:
        if writer.paused:  # an earlier response on this connection is not read yet: start() will wait
            reply.on_pause()
        await writer.start(reply.stream_headers)
        if reply.is_written_to(writer):
            writer.open(reply, direct=isinstance(reply, DirectReply))
            if not (writer.paused or writer.closed):
                reply.on_resume()
        await done
        await writer.finish()
    finally:
        writer.close()
        if reply.leave(writer):
            watch.discard(reply)


def _make_reply(
    backend: Backend, generation: Generation, dialect: Dialect, writer: Writer, *, may_be_direct: bool = True
) -> tuple[DirectReply | StreamedReply, Sequence[DirectReply | ChoiceSink]]:
    """The reply that writes a stream, through the native drain if possible, and the sink of each choice."""
    outlet = make_outlet(writer, backend.codec.table, dialect, generation) if may_be_direct else None
    if outlet is not None:
        direct = DirectReply(writer, dialect, outlet)
        return direct, [direct]
    streamed = StreamedReply(
        writer,
        dialect,
        generation.num_sequences,
        per_prompt=generation.n,
        keep_text=generation.keep_text and generation.output is None,
    )
    return streamed, make_choices(backend.codec, generation, streamed, keep_text=generation.keep_text)


def _submit(
    backend: Backend,
    generation: Generation,
    dialect: Dialect,
    sinks: Sequence[TokenSink | DirectReply],
    account: GenerationAccount,
    *,
    requester: Requester,
    streamed: bool = True,
) -> list[SequenceHandle]:
    """Submit to the engine, or raise the Refusal that is true now."""
    backend.supervisor.check_ready()
    if 0 < generation.deadline_ns <= time.monotonic_ns():
        raise deadline_passed()
    sampling = generation.sampling
    if generation.grammar:
        sampling = msgspec.structs.replace(
            sampling, grammar=generation.grammar, grammar_end_ids=generation.grammar_end_ids
        )
    prompts, n = [None, *(prompt.token_ids for prompt in generation.more_prompts)], generation.n
    return backend.supervisor.client.submit_all(
        dialect.answer_id,
        generation.prompt,
        [
            Choice(
                _seeded(sampling, index % n),
                _target(sink),
                bool(generation.stops),
                timed=streamed,
                prompt=prompts[index // n],
            )
            for index, sink in enumerate(sinks)
        ],
        received_ns=generation.received_ns,
        priority=generation.priority,
        deadline_ns=generation.deadline_ns,
        cache_salt=salt_of(backend, generation.cache_salt, requester),
        requester=requester,
        account=account,
    )


def salt_of(backend: Backend, cache_salt: str, requester: Requester) -> str:
    """With which a prompt is kept in the prefix cache: no other key finds it, whatever salt its holder chooses."""
    if requester.caller is None or backend.share_prefix_cache:
        return cache_salt
    return f"{requester.caller}:{cache_salt}"


def requester_of(scope: Scope) -> Requester:
    """Whose request this is, for the limits."""
    client = scope.get("client")  # None on a Unix socket
    return Requester(scope.get("state", {}).get("caller"), None if client is None else (client[0], client[1]))


def _target(sink: TokenSink | DirectReply) -> TokenSink | DirectTarget:
    return DirectTarget(sink, sink.outlet) if isinstance(sink, DirectReply) else sink


def _bind(
    reply: StreamedReply | DirectReply | CollectedReply,
    sinks: Sequence[ChoiceSink | DirectReply],
    sequences: Sequence[SequenceHandle],
    account: GenerationAccount,
) -> None:
    """Give a reply, and the sink of each of its choices, the sequences that they can cancel and pause."""
    reply.sequences = SequenceHandles(sequences)
    reply.account = account
    for sink, sequence in zip(sinks, sequences, strict=True):
        if isinstance(sink, ChoiceSink):
            sink.sequence = sequence
            sink.account = account


def _note(scope: Scope, account: GenerationAccount) -> None:
    """Leave the account to whoever reports the request when it is over."""
    scope.setdefault("state", {})["generation"] = account


def _seeded(sampling: SamplingParams, index: int) -> SamplingParams:
    """With the seed of a choice: as many more as its number, and an int64 still."""
    return msgspec.structs.replace(sampling, seed=(sampling.seed + index + 2**63) % 2**64 - 2**63)
