"""One generation and its response: submitted to the engine, streamed or collected, and ended.

Owns the order of these things, and that nothing of a generation is left when its response is over, unless the client
may come back for the rest. How requests are read is `rbee.server.openai_api`'s business, what becomes of the tokens
that of `rbee.server.replies`.
"""

from __future__ import annotations

import re
import time
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from rbee.errors import QueueFullError
from rbee.server import sse
from rbee.server.direct_reply import DirectReply, make_outlet
from rbee.server.errors import ApiError
from rbee.server.replies import CollectedReply, StreamedReply, TokenText
from rbee.server.resumption import NumberedFrames, ResumableReply
from rbee.server.stop_strings import StopStrings

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from rbee.sampling_params import SamplingParams
    from rbee.server.http_protocol import StreamWriter
    from rbee.server.replies import LiveReply, StreamWatch
    from rbee.server.resumption import Ticket
    from rbee.server.schemas import StreamOptions
    from rbee.server.served_model import ServedModel
    from rbee.server.supervisor import Supervisor


@dataclass(frozen=True, kw_only=True)
class Generation:
    """A checked request, ready to be submitted."""

    chat: bool
    prompt: list[int]
    sampling: SamplingParams
    stops: list[str]
    stream: bool
    options: StreamOptions
    ignored: list[str]


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

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI's signature
        """Stream the generation: start, frames as tokens come, one end."""
        generation = self._generation
        frames = sse.Frames(
            kind="chat.completion.chunk" if generation.chat else "text_completion",
            request_id=self._id,
            created=self._created,
            model=self._model.name,
            chat=generation.chat,
            usage=generation.options.include_usage and not generation.options.continuous_usage_stats,
        )
        if self._ticket is None:
            reply = self._reply(frames)
            self._submit(reply)
        else:
            reply = self._submit_resumable(frames, self._ticket)
        await write_stream(reply, self._writer, self._watch, send, _warning(generation.ignored))

    async def collect(self) -> Response:
        """Wait for the end; the whole answer as one response."""
        generation = self._generation
        reply = CollectedReply(self._text())
        self._submit(reply)
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
        choice: dict[str, Any] = {"index": 0, "finish_reason": reply.finish_reason, "logprobs": None}
        if generation.chat:
            choice["message"] = {"role": "assistant", "content": reply.text}
        else:
            choice["text"] = reply.text
        prompt_tokens, completion_tokens = len(generation.prompt), reply.completion_tokens
        answer = {
            "id": self._id,
            "object": "chat.completion" if generation.chat else "text_completion",
            "created": self._created,
            "model": self._model.name,
            "choices": [choice],
            "usage": {
                "prompt_tokens": prompt_tokens,
                "completion_tokens": completion_tokens,
                "total_tokens": prompt_tokens + completion_tokens,
            },
        }
        response = Response(msgspec.json.encode(answer), media_type="application/json")
        response.raw_headers.extend(_warning(generation.ignored))
        return response

    def _reply(self, frames: sse.Frames) -> StreamedReply | DirectReply:
        """A reply that the drain writes itself if it can, else one that is written token by token here."""
        generation = self._generation
        if not generation.stops:
            outlet = make_outlet(
                self._writer,
                self._model.codec.table,
                frames,
                generation.options,
                prompt_tokens=len(generation.prompt),
                stop_token_ids=generation.sampling.stop_token_ids,
            )
            if outlet is not None:
                return DirectReply(self._writer, outlet)
        return StreamedReply(self._text(), self._writer, frames, generation.options, len(generation.prompt))

    def _submit_resumable(self, frames: sse.Frames, ticket: Ticket) -> ResumableReply:
        """A reply that the client will find again."""
        text, options = self._text(), self._generation.options
        numbered = NumberedFrames(frames, text, ticket.window)
        prompt_tokens = len(self._generation.prompt)
        reply = ResumableReply(text, self._writer, numbered, options, prompt_tokens, streams=ticket.streams)
        self._submit(reply)
        ticket.streams.add(reply, ticket.owner, self._id, ticket.request_id)
        return reply

    def _text(self) -> TokenText:
        generation = self._generation
        stops = StopStrings(generation.stops) if generation.stops else None
        return TokenText(self._model.codec.detokenizer(), stops, generation.sampling.stop_token_ids)

    def _submit(self, reply: StreamedReply | DirectReply | CollectedReply) -> None:
        """Hand the generation to the engine, or refuse it with the status that is true now."""
        self._supervisor.check_ready()
        client = self._supervisor.client
        try:
            outlet = reply.outlet if isinstance(reply, DirectReply) else None
            reply.stream = client.submit(self._id, self._generation.prompt, self._generation.sampling, reply, outlet)
        except QueueFullError as error:
            headers = {"Retry-After": str(client.retry_after())}
            raise ApiError(429, str(error), code="queue_full", headers=headers) from None


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


def _warning(ignored: list[str]) -> list[tuple[bytes, bytes]]:
    """The header that names the fields that were ignored (RFC 9111 still lists 299: a miscellaneous warning)."""
    if not ignored:
        return []
    names = ", ".join(name if re.fullmatch(r"[\w.\[\]-]{1,64}", name, re.ASCII) else "?" for name in ignored)
    return [(b"warning", f'299 - "ignored: {names}"'.encode())]
