"""A reply as its connection sees it: pauses, keep-alives, slow readers, the one end.

Owns the socket side of a reply, and the one timer that checks all replies. Knows nothing of tokens. docs/operating.md
("Slow readers") bounds the memory that a reply can hold.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Protocol

from rbee.server.streams.outcome import slow_reader

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rbee.server.errors import Refusal
    from rbee.server.http.writer import Writer
    from rbee.server.link.sequences import SequenceHandle
    from rbee.server.streams.account import GenerationAccount
    from rbee.server.streams.dialect import Dialect
    from rbee.server.streams.pieces import Piece

KEEP_ALIVE_SILENCE = 15.0  # seconds


class SequenceHandles(list["SequenceHandle"]):
    """The sequences of one request, handled as one."""

    def cancel(self) -> None:
        for sequence in self:
            sequence.cancel()

    def pause(self) -> None:
        for sequence in self:
            sequence.pause()

    def resume(self) -> None:
        for sequence in self:
            sequence.resume()

    def orphan(self) -> None:
        for sequence in self:
            sequence.orphan()

    def adopt(self) -> None:
        for sequence in self:
            sequence.adopt()


class Reply:
    """One accepted request, until its one end."""

    sequences: SequenceHandle | SequenceHandles  # all of its sequences; set after submission
    account: GenerationAccount | None = None  # the same

    def __init__(self) -> None:
        # Resolved when nothing more will be written or collected.
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def on_closed(self) -> None:
        self.sequences.cancel()
        self._end()

    def _end(self) -> None:
        if not self.done.done():
            self.done.set_result(None)


class LiveReply(Reply):
    """A reply that is written while it is made, and the `WriterListener` of its response.

    A subclass renders frames, writes them with `_write`, and calls `_end` after the last one.
    """

    _last_shown: Piece | None = None  # the piece of the last frame with text, if Python has rendered it
    _paused_at: float | None  # since when the connection has had no room for more, without a break

    def __init__(self, writer: Writer, dialect: Dialect) -> None:
        super().__init__()
        self._dialect = dialect
        self._connect(writer)
        beginning = dialect.begin()
        if beginning:
            self._write(beginning)

    @property
    def stream_headers(self) -> Sequence[tuple[bytes, bytes]]:
        return self._dialect.stream_headers

    def fail(self, refusal: Refusal) -> None:
        """End the reply with an error, in place of what is still missing."""
        self.sequences.cancel()
        self._write(self._error_frames(refusal))
        self._end()

    def on_pause(self) -> None:
        self._paused_at = time.monotonic()
        self.sequences.pause()

    def on_resume(self) -> None:
        self._paused_at = None
        self.sequences.resume()

    def on_half_closed(self) -> None:
        if self._paused_at is None:  # else it has something to read
            self._keep_alive()

    def on_closed(self) -> None:
        self.leave(self._writer)

    def is_written_to(self, writer: Writer) -> bool:
        return writer is self._writer

    def leave(self, writer: Writer) -> bool:  # noqa: ARG002 - a reply with several connections needs it
        """End this reply with the response of `writer`. Harmless after the end.

        Returns False if another response has taken the reply over; it then goes on there.
        """
        self.sequences.cancel()
        self._end()
        return True

    def check(self, now: float, slow_reader_timeout: float) -> None:
        """Send a keep-alive after 15 s of silence; end a stream not read for `slow_reader_timeout` seconds.

        The error goes behind what already waits for the connection, and after the same time again the connection is
        dropped. `now` is time.monotonic().
        """
        if self._paused_at is None:
            if now - self._last_written() >= KEEP_ALIVE_SILENCE:
                self._keep_alive()
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

    def _keep_alive(self) -> None:
        if self._dialect.keep_alive and not self.done.done():
            self._write(self._dialect.keep_alive)

    def _error_frames(self, refusal: Refusal) -> bytes:
        if self.account is not None:
            self.account.refusal = refusal.code or ""
        return self._dialect.error(refusal, self._frames_so_far(), self._last_shown)

    def _frames_so_far(self) -> int:
        """How many frames with text there have been."""
        raise NotImplementedError

    def _last_written(self) -> float:
        return self._written_at  # time.monotonic()

    def _connect(self, writer: Writer) -> None:
        self._writer = writer
        self.done = asyncio.get_running_loop().create_future()
        self._written_at = time.monotonic()
        self._paused_at = None

    def _write(self, frames: bytes) -> None:
        self._written_at = time.monotonic()
        self._writer.write(frames)


class Checked(Protocol):
    """What a `ReplyWatch` checks; for the arguments see `LiveReply.check`."""

    def check(self, now: float, slow_reader_timeout: float) -> None: ...


class ReplyWatch:
    """Checks every open reply periodically, all of them with one timer.

    Args:
        period: seconds between two checks, hence by how much an end can come late.
        slow_reader_timeout: seconds, for `LiveReply.check`.
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
        self._open.add(reply)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._period, self._check)

    def discard(self, reply: Checked) -> None:
        self._open.discard(reply)
        if not self._open and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _check(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._period, self._check)
        now = self._clock()
        for reply in tuple(self._open):  # a check may remove one
            reply.check(now, self._slow_reader_timeout)
