"""What a client goes on sending of a request that has been answered already: it is read and thrown away.

What comes to a closed connection takes the answer from its client. Owns for how long that goes on, and how much of it
there may be. Does not know what was asked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

REST_TIME = 30.0  # seconds that a client may go on with a body whose answer it has got
REST_BYTES = 8 * 2**20  # of it that are thrown away
_PAUSE = 0.05  # seconds between two pieces of it, of up to 256 KB


class Rest:
    """The rest of one request. At a bound its connection is closed.

    Args:
        transport: of the connection.
        may_read: whether the connection reads at all.
        call_later: the event loop's.
    """

    def __init__(
        self,
        transport: asyncio.Transport,
        may_read: Callable[[], bool],
        call_later: Callable[..., asyncio.TimerHandle],
    ) -> None:
        self._transport = transport
        self._may_read = may_read
        self._call_later = call_later
        self._timer = call_later(REST_TIME, transport.close)
        self._size = 0

    def throw_away(self, size: int) -> None:
        """Take no more of it for a while: libuv reads a socket 32 times in a row, while others wait."""
        self._size += size
        if self._size > REST_BYTES:
            self._transport.close()
        elif not self._transport.is_closing():
            self._transport.pause_reading()
            self._call_later(_PAUSE, self._go_on)

    def end(self) -> None:
        """It has come, or nobody waits for it any more."""
        self._timer.cancel()

    def _go_on(self) -> None:
        if not self._transport.is_closing() and self._may_read():
            self._transport.resume_reading()


class Outgoing:
    """A connection's transport as its answers use it: `close` is told to the connection, which may wait for a rest."""

    def __init__(self, transport: asyncio.Transport, close: Callable[[], None]) -> None:
        self.write = transport.write
        self.is_closing = transport.is_closing
        self.close = close
