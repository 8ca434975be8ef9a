"""A reply as its connection sees it: pauses, keep-alives, slow readers, the one end.

Owns all about the socket of a reply, and the one timer that checks all of them. Knows nothing of tokens.

A client that reads slowly holds up nothing but its own stream, and what it makes the server hold is bounded, per stream
(of several choices: rings and frames for each of them):

    its ring                --ring-capacity records of 16 bytes; when it is full its sequence pauses    16 KiB
    the write buffer        WRITE_BUFFER_HIGH, and the frames (some 250 bytes each, and some 100 for
                            each token that logprobs list) of the one drain that passed it, which
                            found a full ring at most                                               32 + 256 KiB
    the kernel's buffer     the listening socket's send buffer, booked twice                           256 KiB

A prompt that is echoed with its logprobs is one frame more, of some 100 bytes for each token that is listed. A stream
that can be resumed has a replay window besides (`rbee.server.streams.resumption`). After --slow-reader-timeout the
stream ends, after twice that time its connection is dropped, and all of this is free.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Protocol

from rbee.server.streams.outcome import slow_reader

if TYPE_CHECKING:
    from collections.abc import Callable

    from rbee.server.errors import Refusal
    from rbee.server.http.writer import Writer
    from rbee.server.link.engine_client import TokenStream
    from rbee.server.streams.dialect import Dialect

KEEP_ALIVE_SILENCE = 15.0  # seconds


class TokenStreams(list["TokenStream"]):
    """The sequences of one request, as if they were one."""

    def cancel(self) -> None:
        for stream in self:
            stream.cancel()

    def pause(self) -> None:
        for stream in self:
            stream.pause()

    def resume(self) -> None:
        for stream in self:
            stream.resume()


class Reply:
    """One accepted request, until its one end.

    Attributes:
        done: resolved when nothing more will be written or collected.
        stream: all of its sequences; set after submission.
    """

    stream: TokenStream | TokenStreams

    def __init__(self) -> None:
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def on_closed(self) -> None:
        """The client is gone: the rest has no reader."""
        self.stream.cancel()
        self._end()

    def _end(self) -> None:
        if not self.done.done():
            self.done.set_result(None)


class LiveReply(Reply):
    """A reply that is written while it is made. It is the `WriterListener` of its response.

    A subclass renders what there is to show, writes it with `_write` and calls `_end` after the last frame. While the
    connection takes nothing the tokens wait in their rings, where they cost nothing.
    """

    _paused_at: float | None  # since when the connection has had no room for more, without a break

    def __init__(self, writer: Writer, dialect: Dialect) -> None:
        super().__init__()
        self._dialect = dialect
        self._connect(writer)
        beginning = dialect.begin()
        if beginning:
            self._write(beginning)

    def fail(self, refusal: Refusal) -> None:
        """Nothing more will come, and this is why."""
        self.stream.cancel()
        self._write(self._error_frames(refusal))
        self._end()

    def on_pause(self) -> None:
        """The connection is full."""
        self._paused_at = time.monotonic()
        self.stream.pause()

    def on_resume(self) -> None:
        """All that waited goes out in one write."""
        self._paused_at = None
        self.stream.resume()

    def on_closed(self) -> None:
        """The client is gone."""
        self.leave(self._writer)

    def is_written_to(self, writer: Writer) -> bool:
        """Whether it is this response that the reply is written to now."""
        return writer is self._writer

    def leave(self, writer: Writer) -> bool:  # noqa: ARG002 - a reply with several connections needs it
        """The response that `writer` belongs to is over: the rest has no reader. Harmless after the end.

        Returns:
            False if the reply is written to another response by now, which everything further belongs to.
        """
        self.stream.cancel()
        self._end()
        return True

    def check(self, now: float, slow_reader_timeout: float) -> None:
        """Send a keep-alive after a long silence; end the stream of a client that has not read for too long.

        The error goes behind what already waits for the connection. The client has the same time again to read it, then
        the connection is dropped.

        Args:
            now: time.monotonic().
            slow_reader_timeout: in seconds.
        """
        if self._paused_at is None:
            silent = now - self._last_written() >= KEEP_ALIVE_SILENCE
            if silent and self._dialect.keep_alive and not self.done.done():
                self._write(self._dialect.keep_alive)
        elif now - self._paused_at >= slow_reader_timeout:
            if self.done.done():
                self._writer.abort()
            else:
                self._paused_at = now
                self.fail(
                    slow_reader(
                        "The client read too slowly: its connection had no room for more for "
                        f"{slow_reader_timeout:g} s (--slow-reader-timeout)."
                    )
                )

    def _error_frames(self, refusal: Refusal) -> bytes:
        return self._dialect.error(refusal)

    def _last_written(self) -> float:
        """When the last frame was written, in time.monotonic()'s seconds."""
        return self._written_at

    def _connect(self, writer: Writer) -> None:
        """From now on this is written to `writer`'s response."""
        self._writer = writer
        self.done = asyncio.get_running_loop().create_future()
        self._written_at = time.monotonic()
        self._paused_at = None

    def _write(self, frames: bytes) -> None:
        self._written_at = time.monotonic()
        self._writer.write(frames)


class Checked(Protocol):
    """What needs a check now and then."""

    def check(self, now: float, slow_reader_timeout: float) -> None:
        """Do what is due. `now` is time.monotonic(), the timeout in seconds."""


class ReplyWatch:
    """Checks every open reply now and then, all of them with one timer; see `LiveReply.check`.

    Args:
        period: seconds between two checks, hence by how much an end can come late.
        slow_reader_timeout: seconds after which a client that does not read is given up.
        clock: time.monotonic, or a test's.
    """

    def __init__(
        self, period: float, slow_reader_timeout: float, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._period = period
        self._slow_reader_timeout = slow_reader_timeout
        self._clock = clock
        self._open: set[Checked] = set()
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._open)

    def add(self, reply: Checked) -> None:
        """From now on this is checked."""
        self._open.add(reply)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._period, self._check)

    def discard(self, reply: Checked) -> None:
        """This needs no more checks."""
        self._open.discard(reply)
        if not self._open and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _check(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._period, self._check)
        now = self._clock()
        for reply in tuple(self._open):  # a check may remove one
            reply.check(now, self._slow_reader_timeout)
