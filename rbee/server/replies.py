"""What becomes of one request's tokens: SSE frames while they come, or one text at the end.

Owns the way from token ids to bytes and that each request has exactly one end. A reply is the sink of its tokens and
the listener of its socket; it runs inside the drain callback. Does not know routes or the engine.

A client that reads slowly holds up nobody but itself, and what it makes the server hold is bounded, per stream:

    its ring                --ring-capacity records of 16 bytes; when it is full its sequence pauses    16 KiB
    the write buffer        WRITE_BUFFER_HIGH, and the frames (some 250 bytes each) of the one drain
                            that passed it, which found a full ring at most                         32 + 256 KiB
    the kernel's buffer     the listening socket's send buffer, booked twice                           256 KiB

A stream that can be resumed has a replay window besides (`rbee.server.resumption`). After --slow-reader-timeout the
stream ends, after twice that time its connection is dropped, and all of this is free.
A reply that is not streamed never pauses: its tokens are collected as they come, bounded by the model's length.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Protocol

from rbee.messages import FinishReason
from rbee.server import sse
from rbee.server.engine_client import finish_error
from rbee.server.errors import ApiError

if TYPE_CHECKING:
    from collections.abc import Collection

    from rbee.server.detokenizer import Detokenizer
    from rbee.server.engine_client import TokenStream
    from rbee.server.http_protocol import StreamWriter
    from rbee.server.resumption import NumberedFrames
    from rbee.server.schemas import StreamOptions
    from rbee.server.sse import Frames
    from rbee.server.stop_strings import StopStrings

KEEP_ALIVE_SILENCE = 15.0  # seconds


class TokenText:
    """The text of one sequence as it may be shown: no special or stop tokens, no stop strings."""

    def __init__(self, detokenizer: Detokenizer, stops: StopStrings | None, stop_token_ids: Collection[int]) -> None:
        self._detokenizer = detokenizer
        self._stops = stops
        self._stop_token_ids = frozenset(stop_token_ids)
        self.num_tokens = 0
        self.stopped = False  # a stop string is complete: no more text

    def push(self, token_id: int) -> str:
        """The text that can be shown because of this token."""
        self.num_tokens += 1
        if token_id in self._stop_token_ids:
            return ""
        text = self._detokenizer.push(token_id)
        if self._stops is not None and text:
            text, self.stopped = self._stops.push(text)
        return text

    def flush(self) -> str:
        """The text that had to wait for a next token which will not come."""
        text = self._detokenizer.flush()
        if self._stops is None:
            return text
        text, self.stopped = self._stops.push(text)
        return text if self.stopped else text + self._stops.flush()


class Reply:
    """One accepted request, until its one end.

    Attributes:
        done: resolved when nothing more will be written or collected.
        stream: set by whoever submits the request.
    """

    stream: TokenStream

    def __init__(self) -> None:
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def on_closed(self) -> None:
        """The client is gone: nobody needs the rest."""
        self.stream.cancel()
        self._end()

    def _end(self) -> None:
        if not self.done.done():
            self.done.set_result(None)


class CollectedReply(Reply):
    """Gathers the whole text, for a response that is not streamed.

    Attributes:
        finish_reason: "stop" or "length" after an ordinary end.
        error: set after any other.
    """

    def __init__(self, text: TokenText) -> None:
        super().__init__()
        self._text = text
        self._texts: list[str] = []
        self.finish_reason = ""
        self.error: ApiError | None = None

    @property
    def text(self) -> str:
        """All of it."""
        return "".join(self._texts)

    @property
    def completion_tokens(self) -> int:
        """Tokens generated, a stop token included."""
        return self._text.num_tokens

    def deliver(self, token_ids: list[int], commit_ns: list[int], reason: int) -> None:  # noqa: ARG002 - TokenSink
        """See `TokenSink`."""
        for token_id in token_ids:
            self._texts.append(self._text.push(token_id))
            if self._text.stopped:
                self.stream.cancel()
                reason = FinishReason.STOP
                break
        if reason:
            self.error = finish_error(reason)
            if not self._text.stopped:
                self._texts.append(self._text.flush())
            self.finish_reason = _finish_name(reason, self._text)
            self._end()

    def fail(self, error: ApiError) -> None:
        """See `TokenSink`."""
        self.error = error
        self._end()

    def on_pause(self) -> None:
        """Nothing is written before the end."""

    def on_resume(self) -> None:
        """Nothing is written before the end."""


class LiveReply(Reply):
    """A reply that is written while it is made: all about its socket, nothing about its tokens.

    A subclass is the `TokenSink`: it renders what is delivered, writes it with `_write` and calls `_end` after the
    last frame. While the socket takes nothing the tokens wait in the ring, where they cost nothing.
    """

    _paused_at: float | None  # since when the socket has no room for more, without a break

    def __init__(self, writer: StreamWriter) -> None:
        super().__init__()
        self._connect(writer)

    def fail(self, error: ApiError) -> None:
        """See `TokenSink`."""
        self._write(sse.error(error.envelope()) + sse.DONE)
        self._end()

    def on_pause(self) -> None:
        """The socket is full."""
        self._paused_at = time.monotonic()
        self.stream.pause()

    def on_resume(self) -> None:
        """All that waited goes out in one write."""
        self._paused_at = None
        self.stream.resume()

    def on_closed(self) -> None:
        """The client is gone."""
        self.leave(self._writer)

    def is_written_to(self, writer: StreamWriter) -> bool:
        """Whether it is this response that the reply is written to now."""
        return writer is self._writer

    def leave(self, writer: StreamWriter) -> bool:  # noqa: ARG002 - a reply with several connections needs it
        """The response that `writer` belongs to is over: nobody needs the rest. Harmless after the end.

        Returns:
            False if the reply is written to another response by now, whose business everything further is.
        """
        self.stream.cancel()
        self._end()
        return True

    def look(self, now: float, slow_reader_timeout: float) -> None:
        """Do what is due: a comment after a long silence, an end for a client that has not read for too long.

        Such a client is told why, behind what already waits for its socket, and has the same time again to read it.

        Args:
            now: time.monotonic().
            slow_reader_timeout: in seconds.
        """
        if self._paused_at is None:
            if now - self._last_written() >= KEEP_ALIVE_SILENCE and not self.done.done():
                self._write(sse.KEEP_ALIVE)
        elif now - self._paused_at >= slow_reader_timeout:
            if self.done.done():
                self._writer.abort()
            else:
                self._paused_at = now
                self.stream.cancel()
                self.fail(_slow_reader(slow_reader_timeout))

    def _last_written(self) -> float:
        """When the last frame was, in time.monotonic()'s seconds."""
        return self._written_at

    def _connect(self, writer: StreamWriter) -> None:
        """From now on this is written to `writer`'s response."""
        self._writer = writer
        self.done = asyncio.get_running_loop().create_future()
        self._written_at = time.monotonic()
        self._paused_at = None

    def _write(self, frames: bytes) -> None:
        self._written_at = time.monotonic()
        self._writer.write(frames)


class StreamedReply(LiveReply):
    """Writes a frame for each token that shows text, all frames of one drain in one write."""

    def __init__(
        self,
        text: TokenText,
        writer: StreamWriter,
        frames: Frames | NumberedFrames,
        options: StreamOptions,
        prompt_tokens: int,
    ) -> None:
        super().__init__(writer)
        self._text = text
        self._frames = frames
        self._options = options
        self._plain = not (options.include_timing or options.continuous_usage_stats)
        self._prompt_tokens = prompt_tokens

    def deliver(self, token_ids: list[int], commit_ns: list[int], reason: int) -> None:
        """See `TokenSink`. The finish reason rides on the last token's frame, if that shows text."""
        push = self._text.push
        out: list[bytes] = []
        shown, extra = "", b""
        for token_id, committed_ns in zip(token_ids, commit_ns, strict=True):
            if shown:
                out.append(self._frames.text(shown, extra))
            shown = push(token_id)
            extra = b"" if self._plain else self._extra(committed_ns)
            if self._text.stopped:
                self.stream.cancel()
                reason = FinishReason.STOP
                break
        if reason:
            self._finish(out, shown, extra, reason)
        elif shown:
            out.append(self._frames.text(shown, extra))
        if out:
            self._write(b"".join(out))
        if reason:
            self._end()

    def fail(self, error: ApiError) -> None:
        """See `TokenSink`."""
        self._write(self._frames.error(error.envelope()) + self._frames.done())
        self._end()

    def _finish(self, out: list[bytes], shown: str, extra: bytes, reason: int) -> None:
        """Append what ends the stream: the last text, why it is the last, the token counts, [DONE]."""
        if not self._text.stopped:
            shown += self._text.flush()
        error = finish_error(reason)
        if error is None:
            out.append(self._frames.last(shown, _finish_name(reason, self._text), extra))
            if self._options.include_usage:
                out.append(self._frames.usage(self._prompt_tokens, self._text.num_tokens))
        else:
            if shown:
                out.append(self._frames.text(shown, extra))
            out.append(self._frames.error(error.envelope()))
        out.append(self._frames.done())

    def _extra(self, committed_ns: int) -> bytes:
        extra = b""
        if self._options.include_timing:
            extra += sse.timing_member(committed_ns)
        if self._options.continuous_usage_stats:
            extra += sse.usage_member(self._prompt_tokens, self._text.num_tokens)
        return extra


class Watched(Protocol):
    """What needs a look now and then."""

    def look(self, now: float, slow_reader_timeout: float) -> None:
        """Do what is due. `now` is time.monotonic(), the timeout in seconds."""


class StreamWatch:
    """Looks at every open stream now and then, at all of them with one timer; see `LiveReply.look`."""

    def __init__(self, period: float, slow_reader_timeout: float) -> None:
        """Start with none to look at.

        Args:
            period: seconds between two looks, hence by how much an end can come late.
            slow_reader_timeout: seconds after which a client that does not read is given up.
        """
        self._period = period
        self._slow_reader_timeout = slow_reader_timeout
        self._open: set[Watched] = set()
        self._timer: asyncio.TimerHandle | None = None

    def add(self, stream: Watched) -> None:
        """From now on this stream is looked at."""
        self._open.add(stream)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._period, self._look)

    def discard(self, stream: Watched) -> None:
        """This stream needs no more looks."""
        self._open.discard(stream)
        if not self._open and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._period, self._look)
        now = time.monotonic()
        for stream in tuple(self._open):  # one may go because of what it sees
            stream.look(now, self._slow_reader_timeout)


def _slow_reader(slow_reader_timeout: float) -> ApiError:
    return ApiError(
        408,
        f"The client read too slowly: its connection had no room for more for {slow_reader_timeout:g} s "
        "(--slow-reader-timeout).",
        code="slow_reader",
    )


def _finish_name(reason: int, text: TokenText) -> str:
    """OpenAI's word; a stop string that only the flush completed counts as one."""
    return "stop" if text.stopped or reason == FinishReason.STOP else "length"
