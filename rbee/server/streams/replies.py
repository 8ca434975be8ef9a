"""What becomes of one request's choices: SSE frames while they come, or one answer at the end.

Owns the way from pieces of text to bytes and that each request has exactly one end. A reply is what the choices of its
request tell of their pieces (`rbee.server.streams.choices`) and the listener of its socket; it runs inside the drain
callback. Does not know routes, tokens or the engine.

A client that reads slowly holds up nobody but itself, and what it makes the server hold is bounded, per stream (of
several choices: rings and frames for each of them):

    its ring                --ring-capacity records of 16 bytes; when it is full its sequence pauses    16 KiB
    the write buffer        WRITE_BUFFER_HIGH, and the frames (some 250 bytes each, and some 100 for
                            each token that logprobs list) of the one drain that passed it, which
                            found a full ring at most                                               32 + 256 KiB
    the kernel's buffer     the listening socket's send buffer, booked twice                           256 KiB

A prompt that is echoed with its logprobs is one frame more, of some 100 bytes for each token that is listed. A stream
that can be resumed has a replay window besides (`rbee.server.streams.resumption`). After --slow-reader-timeout the
stream ends, after twice that time its connection is dropped, and all of this is free.
A reply that is not streamed never pauses: its tokens are collected as they come, bounded by the model's length.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Protocol

from rbee.server.errors import ApiError
from rbee.server.protocols.openai import frames as sse
from rbee.server.streams.choices import FINISH_NAMES, Ends

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rbee.server.http.protocol import StreamWriter
    from rbee.server.link.engine_client import TokenStream
    from rbee.server.protocols.openai.frames import Frames
    from rbee.server.protocols.openai.logprobs import Format, TokenLogprob
    from rbee.server.protocols.openai.schemas import StreamOptions
    from rbee.server.streams.choices import ChoiceSink, Piece
    from rbee.server.streams.resumption import NumberedFrames

KEEP_ALIVE_SILENCE = 15.0  # seconds


class TokenStreams(list["TokenStream"]):
    """The sequences of one request, as if they were one."""

    def cancel(self) -> None:
        """See `TokenStream.cancel`."""
        for stream in self:
            stream.cancel()

    def pause(self) -> None:
        """See `TokenStream.pause`."""
        for stream in self:
            stream.pause()

    def resume(self) -> None:
        """See `TokenStream.resume`."""
        for stream in self:
            stream.resume()


class Reply:
    """One accepted request, until its one end.

    Attributes:
        done: resolved when nothing more will be written or collected.
        stream: all of its sequences; set by whoever submits them.
    """

    stream: TokenStream | TokenStreams

    def __init__(self) -> None:
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def on_closed(self) -> None:
        """The client is gone: nobody needs the rest."""
        self.stream.cancel()
        self._end()

    def _end(self) -> None:
        if not self.done.done():
            self.done.set_result(None)


class CollectedChoice:
    """A choice of an answer that is not streamed.

    Attributes:
        pieces: so far.
        finish_reason: in OpenAI's words, after an ordinary end.
    """

    def __init__(self) -> None:
        self.pieces: list[Piece] = []
        self.finish_reason = ""

    @property
    def text(self) -> str:
        """All of it."""
        return "".join([piece.text for piece in self.pieces])

    @property
    def entries(self) -> list[TokenLogprob]:
        """Of all its tokens."""
        return [entry for piece in self.pieces for entry in piece.entries]


class CollectedReply(Reply):
    """Gathers the choices, for a response that is not streamed.

    Attributes:
        choices: by their index.
        ends: of these.
        error: set after any end that is not an ordinary one.
    """

    def __init__(self, num_choices: int = 1) -> None:
        super().__init__()
        self.choices = [CollectedChoice() for _ in range(num_choices)]
        self.ends = Ends(num_choices)
        self.error: ApiError | None = None

    def show(self, choice: ChoiceSink, pieces: list[Piece], reason: int) -> None:
        """See `PieceSink`."""
        collected = self.choices[choice.index]
        collected.pieces += pieces
        collected.finish_reason = FINISH_NAMES.get(reason, "")
        error = self.ends.note(choice, reason)
        if error is not None:
            self.fail(error)
        elif not self.ends.num_open:
            self._end()

    def fail(self, error: ApiError) -> None:
        """See `PieceSink`."""
        self.error = error
        self.stream.cancel()
        self._end()

    def on_pause(self) -> None:
        """Nothing is written before the end."""

    def on_resume(self) -> None:
        """Nothing is written before the end."""


class LiveReply(Reply):
    """A reply that is written while it is made: all about its socket, nothing about its tokens.

    A subclass renders what there is to show, writes it with `_write` and calls `_end` after the last frame. While the
    socket takes nothing the tokens wait in their rings, where they cost nothing.
    """

    _paused_at: float | None  # since when the socket has no room for more, without a break

    def __init__(self, writer: StreamWriter) -> None:
        super().__init__()
        self._connect(writer)

    def fail(self, error: ApiError) -> None:
        """Nothing more will come, and this is why."""
        self.stream.cancel()
        self._write(self._error_frames(error))
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
                self.fail(_slow_reader(slow_reader_timeout))

    def _error_frames(self, error: ApiError) -> bytes:
        return sse.error(error.envelope()) + sse.DONE

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
    """Writes a frame for each piece of each choice, all that one drain has of a choice in one write.

    The frames of several choices come as their tokens do, one among the other. The whole ends when the last one does;
    an error of one ends all.
    """

    def __init__(
        self,
        writer: StreamWriter,
        frames: Sequence[Frames | NumberedFrames],
        options: StreamOptions,
        prompt_tokens: int,
        logprobs: Format | None = None,
    ) -> None:
        """Write nothing yet.

        Args:
            writer: of its response.
            frames: of each choice.
            options: what the client wants besides text. The usage in a chunk is that of its choice so far.
            prompt_tokens: for the usage.
            logprobs: says what an entry looks like; None if there are none.
        """
        super().__init__(writer)
        self._frames = frames
        self._options = options
        self._extras = options.include_timing or options.continuous_usage_stats
        self._prompt_tokens = prompt_tokens
        self._logprobs = logprobs
        self._ends = Ends(len(frames))

    def show(self, choice: ChoiceSink, pieces: list[Piece], reason: int) -> None:
        """See `PieceSink`. The finish reason rides on the last token's frame, if that shows text."""
        frames = self._frames[choice.index]
        last = pieces.pop() if reason else None
        out = [self._frame(frames, piece) for piece in pieces]
        error = self._ends.note(choice, reason)
        if last is not None and error is None:
            out.append(self._frame(frames, last, FINISH_NAMES[reason]))
        elif last is not None and last.text:
            out.append(self._frame(frames, last))
        if error is not None:
            self.stream.cancel()
            out.append(self._error_frames(error))
        elif not self._ends.num_open:
            out.append(self._end_frames())
        if out:
            self._write(b"".join(out))
        if not self._ends.num_open:
            self._end()

    def _frame(self, frames: Frames | NumberedFrames, piece: Piece, finish_reason: str = "") -> bytes:
        """The frame of a piece, the last one of its choice if there is a finish reason."""
        extra = logprobs = b""
        if self._extras and piece.committed_ns is not None:
            if self._options.include_timing:
                extra += sse.timing_member(piece.committed_ns)
            if self._options.continuous_usage_stats:
                extra += sse.usage_member(self._prompt_tokens, piece.num_tokens)
        if self._logprobs is not None and piece.entries:
            logprobs = sse.logprobs_member(self._logprobs(piece.entries))
        if finish_reason:
            return frames.last(piece.text, finish_reason, extra, logprobs)
        return frames.text(piece.text, extra, logprobs)

    def _end_frames(self) -> bytes:
        """What comes after the last chunk of the last choice."""
        frames, usage = self._frames[0], b""
        if self._options.include_usage:
            usage = frames.usage(self._prompt_tokens, self._ends.completion_tokens, self._ends.cached_tokens)
        return usage + frames.done()

    def _error_frames(self, error: ApiError) -> bytes:
        return self._frames[0].error(error.envelope()) + self._frames[0].done()


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
