"""Notices the clients that leave while their connections are not read.

Owns one epoll for those connections. A transport that does not read reports no end: uvicorn stops reading while a
request waits behind another one, or when a body comes faster than it is taken. nginx asks the kernel the same way
(EPOLLRDHUP). Does not know what a departure means.
"""

from __future__ import annotations

import asyncio
import select
from typing import TYPE_CHECKING

from uvicorn.protocols.http.flow_control import FlowControl

if TYPE_CHECKING:
    from collections.abc import Callable


class Departures:
    """Calls back once when the peer of a watched socket has closed its side, however much of it is unread.

    The epoll is there only while something is watched.
    """

    def __init__(self) -> None:
        self._watched: dict[int, Callable[[], None]] = {}
        self._epoll: select.epoll | None = None

    def watch(self, descriptor: int, on_departure: Callable[[], None]) -> None:
        if self._epoll is None:
            self._epoll = select.epoll()
            asyncio.get_running_loop().add_reader(self._epoll.fileno(), self._on_ready)
        self._watched[descriptor] = on_departure
        self._epoll.register(descriptor, select.EPOLLRDHUP)

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
    """uvicorn's flow control of one connection, which notices that the client leaves also while nothing is read."""

    def __init__(self, transport: asyncio.Transport, departures: Departures, on_departure: Callable[[], None]) -> None:
        super().__init__(transport)
        sock = transport.get_extra_info("socket")
        self._descriptor: int | None = None if sock is None else sock.fileno()
        self._departures = departures
        self._on_departure = on_departure

    def has_left(self) -> bool:
        """Whether the client has closed its side by now; from any thread."""
        if self._descriptor is None:
            return False
        poll = select.poll()
        poll.register(self._descriptor, select.POLLRDHUP)
        return bool(poll.poll(0))

    def pause_reading(self) -> None:
        if not self.read_paused and self._descriptor is not None:
            self._departures.watch(self._descriptor, self._on_departure)
        super().pause_reading()

    def resume_reading(self) -> None:
        self.end()
        super().resume_reading()

    def end(self) -> None:
        """Watch no longer; must be called before the connection's descriptor is closed."""
        if self.read_paused and self._descriptor is not None:
            self._departures.forget(self._descriptor)
