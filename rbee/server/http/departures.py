"""Notices the clients that leave while nothing is read of their connections.

Owns one epoll for those connections. A transport that does not read reports no end: uvicorn stops reading while a
request waits behind another one, or when a body comes faster than it is taken. nginx asks the kernel the same way
(EPOLLRDHUP). And one that has read its peer's end reports nothing more: that peer may have ended its own side alone,
and wait for the answer. Does not know what a departure means.
"""

from __future__ import annotations

import asyncio
import select
from typing import TYPE_CHECKING

from uvicorn.protocols.http.flow_control import FlowControl

if TYPE_CHECKING:
    from collections.abc import Callable


class Departures:
    """Calls back once when the peer of a watched socket has closed its side, or both, however much of it is unread.

    The epoll is there only while something is watched.
    """

    def __init__(self) -> None:
        self._watched: dict[int, Callable[[], object]] = {}
        self._epoll: select.epoll | None = None

    def watch(self, descriptor: int, on_departure: Callable[[], object], *, half: bool) -> None:
        """Watch this socket; with `half` its peer has left when it has ended its own side."""
        if self._epoll is None:
            self._epoll = select.epoll()
            asyncio.get_running_loop().add_reader(self._epoll.fileno(), self._on_ready)
        self._watched[descriptor] = on_departure
        self._epoll.register(descriptor, select.EPOLLRDHUP if half else 0)

    def forget(self, descriptor: int) -> None:
        """Must come before the descriptor is closed. Harmless for one that is not watched."""
        if self._epoll is None or self._watched.pop(descriptor, None) is None:
            return
        self._epoll.unregister(descriptor)
        if not self._watched:
            asyncio.get_running_loop().remove_reader(self._epoll.fileno())
            self._epoll.close()
            self._epoll = None

    def _on_ready(self) -> None:
        assert self._epoll is not None
        for descriptor, _ in self._epoll.poll(0):
            on_departure = self._watched[descriptor]
            self.forget(descriptor)
            on_departure()


class WatchedFlow(FlowControl):
    """uvicorn's flow control of one connection, which notices that the client leaves also while nothing is read.

    Args:
        transport: of the connection.
        departures: watches its socket.
        on_end: the client has ended its side, though that has not been read yet.
        ask: has such a client show whether it still waits for an answer; False if there is no way.
    """

    def __init__(
        self,
        transport: asyncio.Transport,
        departures: Departures,
        on_end: Callable[[], object],
        ask: Callable[[], bool],
    ) -> None:
        super().__init__(transport)
        sock = transport.get_extra_info("socket")
        self._descriptor: int | None = None if sock is None else sock.fileno()
        self._transport = transport
        self._departures = departures
        self._on_end = on_end
        self._ask = ask
        self._is_watched = False

    def has_left(self) -> bool:
        """Whether the client has left by now, as far as this machine knows; from any thread."""
        events = self._events()
        if events == select.POLLRDHUP and self._ask():
            events = self._events() & ~select.POLLRDHUP
        return bool(events)

    def await_reset(self) -> None:
        """Close the connection as soon as a client that has ended its side shows that it does not wait."""
        self._watch(self._transport.close, half=False)

    def pause_reading(self) -> None:
        if not self.read_paused and not self._is_watched:
            self._watch(self._on_end, half=True)
        super().pause_reading()

    def resume_reading(self) -> None:
        if self.read_paused:
            self.end()
        super().resume_reading()

    def end(self) -> None:
        """Watch no longer; must be called before the connection's descriptor is closed."""
        if self._is_watched and self._descriptor is not None:
            self._is_watched = False
            self._departures.forget(self._descriptor)

    def _watch(self, on_departure: Callable[[], object], *, half: bool) -> None:
        self.end()
        if self._descriptor is not None:
            self._is_watched = True
            self._departures.watch(self._descriptor, on_departure, half=half)

    def _events(self) -> int:
        """Which of POLLRDHUP, POLLHUP and POLLERR hold."""
        if self._descriptor is None:
            return 0
        poll = select.poll()
        poll.register(self._descriptor, select.POLLRDHUP)
        return next((events for _, events in poll.poll(0)), 0)
