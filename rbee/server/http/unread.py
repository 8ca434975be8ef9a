"""Ends the connection of a client that does not read its answer.

Owns how long bytes may wait for one connection without any of them being taken. A stream that is under way watches its
own client (`WriterListener`), because it can still be told. Does not know answers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

_CHECKS = 4  # within the timeout


class Outgoing(Protocol):
    """The part of a transport that sends."""

    def get_write_buffer_size(self) -> int:
        """Bytes that wait in user space."""

    def abort(self) -> None: ...


class Timer(Protocol):
    """What `call_later` returns."""

    def cancel(self) -> None: ...


class Layers:
    """TLS and the transport that carries it, as one: TLS alone does not know what waits below it."""

    def __init__(self, upper: Outgoing, lower: Outgoing) -> None:
        self._upper = upper
        self._lower = lower

    def get_write_buffer_size(self) -> int:
        """Bytes that wait in either."""
        return self._upper.get_write_buffer_size() + self._lower.get_write_buffer_size()

    def abort(self) -> None:
        """Drop both."""
        self._upper.abort()


class UnreadBytes:
    """Watches the bytes that wait for one connection, from `wrote` on until none do.

    Args:
        transport: is aborted when it has taken nothing for `timeout` seconds, a quarter more at most.
        timeout: in seconds.
        is_watched: true while something else watches the client.
        clock: seconds, for example time.monotonic.
        call_later: as that of an event loop.
    """

    def __init__(
        self,
        transport: Outgoing,
        timeout: float,
        is_watched: Callable[[], bool],
        *,
        clock: Callable[[], float],
        call_later: Callable[[float, Callable[[], None]], Timer],
    ) -> None:
        self._transport = transport
        self._timeout = timeout
        self._is_watched = is_watched
        self._clock = clock
        self._call_later = call_later
        self._timer: Timer | None = None
        self._waiting = 0  # bytes, at the last look
        self._since = 0.0  # when some were taken, or added

    def wrote(self) -> None:
        """Bytes were added."""
        self._waiting = self._transport.get_write_buffer_size()
        self._since = self._clock()
        if self._timer is None:
            self._timer = self._call_later(self._timeout / _CHECKS, self._check)

    def end(self) -> None:
        """The connection has ended."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _check(self) -> None:
        waiting = self._transport.get_write_buffer_size()
        if not waiting:
            self._timer = None
            return
        now = self._clock()
        if waiting < self._waiting or self._is_watched():
            self._since = now
        self._waiting = waiting
        if now - self._since < self._timeout:
            self._timer = self._call_later(self._timeout / _CHECKS, self._check)
        else:
            self._timer = None
            self._transport.abort()
