"""One generation and its response: submitted to the engine, streamed or collected, and ended.

Owns the order of these things, and that nothing of a generation is left when its response is over, unless the client
may come back for the rest. How requests are read is `rbee.server.protocols.openai.reader`'s business, what becomes of
the tokens that of `rbee.server.streams.replies`.
"""

from __future__ import annotations

import asyncio
import functools
import re
import time
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from rbee.errors import QueueFullError
from rbee.server.errors import ApiError
from rbee.server.link.engine_client import Choice
from rbee.server.protocols.openai import frames as sse
from rbee.server.protocols.openai.logprobs import TokenRecords, chat_logprobs, completion_logprobs
from rbee.server.streams.choices import AnnotatedChoiceSink, ChoiceSink, Echo, TokenText
from rbee.server.streams.direct_reply import DirectReply, make_outlet
from rbee.server.streams.replies import CollectedReply, StreamedReply, TokenStreams
from rbee.server.streams.resumption import NumberedFrames, ResumableReply
from rbee.server.text.stop_strings import StopStrings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from starlette.types import Receive, Scope, Send

    from rbee.sampling_params import SamplingParams
    from rbee.server.http.protocol import StreamWriter
    from rbee.server.link.supervisor import Supervisor
    from rbee.server.protocols.openai.logprobs import Format
    from rbee.server.protocols.openai.schemas import StreamOptions
    from rbee.server.streams.replies import CollectedChoice, LiveReply, StreamWatch
    from rbee.server.streams.resumption import Ticket
    from rbee.server.text.served_model import ServedModel
    from rbee.transport import Outlet


@dataclass(frozen=True, kw_only=True)
class Generation:
    """A checked request, ready to be submitted.

    Attributes:
        chat: whether it is answered as a chat completion.
        prompt: token ids.
        sampling: of choice 0; the seed of choice i is i more.
        stops: stop strings.
        stream: whether the client wants the answer as it comes.
        options: what it wants besides, in a stream.
        ignored: names of the fields that are not followed.
        n: choices to make, >= 1.
        echo: whether the prompt comes before the completion.
        prompt_text: the prompt as the client gave it, for the echo; None if it gave token ids.
        show_output: False if the prompt is all that the client wants (max_tokens 0); sampling.max_tokens is 1 then, and
            the token is dropped.
        priority: smaller runs earlier.
        deadline_ns: when it ends at the latest, CLOCK_MONOTONIC; 0 is never.
        cache_salt: only requests with the same salt share cached prefixes.
    """

    chat: bool
    prompt: list[int]
    sampling: SamplingParams
    stops: list[str]
    stream: bool
    options: StreamOptions
    ignored: list[str]
    n: int = 1
    echo: bool = False
    prompt_text: str | None = None
    show_output: bool = True
    priority: int = 0
    deadline_ns: int = 0
    cache_salt: str = ""


class Exchange(Response):
    """One generation and its response. As a response it streams; `collect` gives one that does not."""

    def __init__(
        self,
        supervisor: Supervisor,
        model: ServedModel,
        watch: StreamWatch,
        generation: Generation,
        writer: StreamWriter,
        *,
        ticket: Ticket | None = None,
    ) -> None:
        """Prepare; nothing is submitted before the response is asked for.

        Args:
            supervisor: of the engine that runs it.
            model: that the request is for.
            watch: looks after the stream.
            generation: what to run.
            writer: of the request that asked for it.
            ticket: lets the client resume the stream; None for a client that cannot.
        """
        self.background = None
        self._supervisor = supervisor
        self._model = model
        self._watch = watch
        self._generation = generation
        self._writer = writer
        self._ticket = ticket
        self._id = ("chatcmpl-" if generation.chat else "cmpl-") + uuid.uuid4().hex
        self._created = int(time.time())
        self._echo = Echo.of(generation.prompt, generation.prompt_text, model.codec) if generation.echo else None
        self._format: Format | None = None
        if generation.sampling.num_logprobs is not None or generation.sampling.num_prompt_logprobs is not None:
            logprobs = chat_logprobs if generation.chat else completion_logprobs
            self._format = functools.partial(logprobs, token_bytes=model.codec.token_bytes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI's signature
        """Stream the generation: start, frames as tokens come, one end."""
        generation = self._generation
        ticket = self._ticket
        reply: LiveReply = self._resumable(ticket) if ticket is not None else self._direct() or self._streamed()
        await write_stream(reply, self._writer, self._watch, send, _warning(generation.ignored))

    async def collect(self) -> Response:
        """Wait for the end; the whole answer as one response."""
        generation = self._generation
        reply = CollectedReply(generation.n)
        self._submit(reply, [self._choice(index, reply) for index in range(generation.n)])
        try:
            self._writer.open(reply)
            await reply.done
        finally:
            reply.stream.cancel()
            self._writer.close()
        if self._writer.closed:
            raise ClientDisconnect
        if reply.error is not None:
            raise reply.error
        # Long lists of logprobs take their time: a thread leaves the event loop to the streams beside it.
        body = self._answer(reply) if self._format is None else await asyncio.to_thread(self._answer, reply)
        response = Response(body, media_type="application/json")
        response.raw_headers.extend(_warning(generation.ignored))
        return response

    def _direct(self) -> DirectReply | None:
        """A stream that the drain writes itself, if that can be."""
        generation = self._generation
        if generation.n > 1 or generation.echo or generation.stops or self._format is not None:
            return None
        outlet = make_outlet(
            self._writer,
            self._model.codec.table,
            self._frames(0),
            generation.options,
            prompt_tokens=len(generation.prompt),
            stop_token_ids=generation.sampling.stop_token_ids,
        )
        if outlet is None:
            return None
        reply = DirectReply(self._writer, outlet)
        self._submit(reply, [reply], outlet)
        return reply

    def _streamed(self) -> StreamedReply:
        """A stream that is written piece by piece."""
        generation = self._generation
        frames = [self._frames(index) for index in range(generation.n)]
        reply = StreamedReply(self._writer, frames, generation.options, len(generation.prompt), self._format)
        self._submit(reply, [self._choice(index, reply) for index in range(generation.n)])
        return reply

    def _resumable(self, ticket: Ticket) -> ResumableReply:
        """A stream that the client will find again."""
        generation = self._generation
        assert generation.n == 1, "the ids of events count the tokens of one choice"
        numbered = NumberedFrames(self._frames(0), ticket.window)
        reply = ResumableReply(
            self._writer,
            numbered,
            generation.options,
            len(generation.prompt),
            self._format,
            streams=ticket.streams,
        )
        self._submit(reply, [self._choice(0, reply)])
        ticket.streams.add(reply, ticket.owner, self._id, ticket.request_id)
        return reply

    def _frames(self, index: int) -> sse.Frames:
        generation = self._generation
        return sse.Frames(
            kind="chat.completion.chunk" if generation.chat else "text_completion",
            request_id=self._id,
            created=self._created,
            model=self._model.name,
            chat=generation.chat,
            usage=generation.options.include_usage and not generation.options.continuous_usage_stats,
            index=index,
        )

    def _choice(self, index: int, reply: StreamedReply | CollectedReply) -> ChoiceSink:
        generation, sampling = self._generation, self._generation.sampling
        text = TokenText(
            self._model.codec.detokenizer(),
            StopStrings(generation.stops) if generation.stops else None,
            sampling.stop_token_ids,
            min_tokens=sampling.min_tokens,
            echo=self._echo,
        )
        if self._format is None and self._echo is None:
            return ChoiceSink(index, reply, text, report_cached=bool(generation.stops))
        return AnnotatedChoiceSink(
            index,
            reply,
            text,
            TokenRecords(sampling, len(generation.prompt)),
            report_cached=bool(generation.stops),
            logprobs=self._format is not None,
            echo=self._echo,
            show_output=generation.show_output,
        )

    def _submit(
        self,
        reply: StreamedReply | DirectReply | CollectedReply,
        sinks: Sequence[ChoiceSink | DirectReply],
        outlet: Outlet | None = None,
    ) -> None:
        """Hand the generation to the engine, or refuse it with the status that is true now."""
        self._supervisor.check_ready()
        client = self._supervisor.client
        generation = self._generation
        try:
            streams = client.submit_all(
                self._id,
                generation.prompt,
                [
                    Choice(_seeded(generation.sampling, index), sink, outlet, report_cached=bool(generation.stops))
                    for index, sink in enumerate(sinks)
                ],
                priority=generation.priority,
                deadline_ns=generation.deadline_ns,
                cache_salt=generation.cache_salt,
            )
        except QueueFullError as error:
            headers = {"Retry-After": str(client.retry_after())}
            raise ApiError(429, str(error), code="queue_full", headers=headers) from None
        reply.stream = TokenStreams(streams)
        for sink, stream in zip(sinks, streams, strict=True):
            sink.stream = stream

    def _answer(self, reply: CollectedReply) -> bytes:
        generation = self._generation
        prompt_tokens, completion_tokens = len(generation.prompt), reply.ends.completion_tokens
        usage: dict[str, Any] = {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
        }
        if reply.ends.cached_tokens is not None:
            usage["prompt_tokens_details"] = {"cached_tokens": reply.ends.cached_tokens}
        answer = {
            "id": self._id,
            "object": "chat.completion" if generation.chat else "text_completion",
            "created": self._created,
            "model": self._model.name,
            "choices": [self._shown(index, choice) for index, choice in enumerate(reply.choices)],
            "usage": usage,
        }
        return msgspec.json.encode(answer)

    def _shown(self, index: int, choice: CollectedChoice) -> dict[str, Any]:
        """A choice as the answer has it."""
        shown: dict[str, Any] = {
            "index": index,
            "finish_reason": choice.finish_reason,
            "logprobs": self._format(choice.entries) if self._format is not None else None,
        }
        if self._generation.chat:
            return shown | {"message": {"role": "assistant", "content": choice.text}}
        return shown | {"text": choice.text}


class Resumption(Response):
    """The rest of a stream, on another connection."""

    def __init__(self, reply: ResumableReply, last_id: int, writer: StreamWriter, watch: StreamWatch) -> None:
        """Go on with `reply` after the event with this id, as the response that `writer` belongs to."""
        self.background = None
        self._reply = reply
        self._last_id = last_id
        self._writer = writer
        self._watch = watch

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI's signature
        """Stream what the client has not got."""
        self._reply.attach(self._writer, self._last_id)
        await write_stream(self._reply, self._writer, self._watch, send, [])


async def write_stream(
    reply: LiveReply, writer: StreamWriter, watch: StreamWatch, send: Send, headers: list[tuple[bytes, bytes]]
) -> None:
    """Write `reply` as the response that `writer` belongs to, until its end, or until another response has it."""
    done = reply.done
    watch.add(reply)
    try:
        if writer.paused:  # an earlier response on this connection is not read yet: send() will wait
            reply.on_pause()
        await send({"type": "http.response.start", "status": 200, "headers": [*sse.HEADERS, *headers]})
        if reply.is_written_to(writer):
            writer.open(reply, direct=isinstance(reply, DirectReply))
            if not (writer.paused or writer.closed):
                reply.on_resume()
        await done
        await send({"type": "http.response.body", "body": b"", "more_body": False})  # when the client takes it
    finally:
        writer.close()
        if reply.leave(writer):
            watch.discard(reply)


def _seeded(sampling: SamplingParams, index: int) -> SamplingParams:
    """The parameters of a choice: other random numbers for each."""
    return msgspec.structs.replace(sampling, seed=(sampling.seed + index) % 2**63)


def _warning(ignored: list[str]) -> list[tuple[bytes, bytes]]:
    """The header that names the fields that were ignored (RFC 9111 still lists 299: a miscellaneous warning)."""
    if not ignored:
        return []
    names = ", ".join(name if re.fullmatch(r"[\w.\[\]-]{1,64}", name, re.ASCII) else "?" for name in ignored)
    return [(b"warning", f'299 - "ignored: {names}"'.encode())]
