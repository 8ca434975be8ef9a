"""Takes connections from a listening socket, and holds each until the head of its first request is there.

Owns accepting, and connections of which nothing is known yet. Held, one costs a descriptor and its few bytes: no
transport, no parser, no timer of its own. So who opens many and sends nothing, or never the end of a head, costs next
to nothing, and who comes behind with a whole head passes them. What is no beginning of a head goes on at once, to be
refused by the protocol. Does not know what is asked, nor how many connections there may be.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import re
import select
import socket
from itertools import islice
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

_log = logging.getLogger(__name__)

_AT_ONCE = 32  # connections taken, or looked at, between two turns of the event loop
_MOST_HELD = 4096  # bytes of a head
_PIECE = 16 * 1024  # bytes of one read: all of most requests
_PAUSE = 0.1  # seconds without accepting when there is no descriptor or memory for a connection
_READABLE = select.EPOLLIN | select.EPOLLRDHUP
_NO_ROOM = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}

_LINE = rb"[A-Z]{1,16} [!-~]+ HTTP/1\.[01]\r\n"
_FIELDS = rb"(?:[!-9;-~]+:[^\r\n\0]*\r\n)*(?:[!-9;-~]+(?::[^\r\n\0]*)?)?"
_END = b"\r\n\r\n"
_BEGINNING = re.compile(rb"[A-Z]{1,16}(?: [!-~]*(?: [HTP/.01]{0,8}\r?)?)?|" + _LINE + _FIELDS + rb"\r?")


def is_beginning(data: bytes) -> bool:
    """Whether this is plainly a request line and fields, to any point before their end (RFC 9112, 2.1).

    It goes for nothing else that a parser may take, such as an empty line in front.
    """
    return _END not in data and _BEGINNING.fullmatch(data) is not None


class Places(Protocol):
    """Where connections are counted, and made to give way."""

    def add(self, newcomer: Newcomer) -> None:
        """There is one more; it may be dropped from now on."""

    def remove(self, newcomer: Newcomer) -> None:
        """It has gone before it had a protocol."""

    def give_way(self) -> bool:
        """Drop the one that has waited for its client longest; False if none waits."""


class Newcomer:
    """A connection from its accept until its protocol has it.

    Args:
        acceptor: holds it.
        sock: its socket.
        client: the client's address and port; None on a Unix socket.
        since: when it came, by the event loop's clock.

    Attributes:
        address: of its client; "" on a Unix socket.
    """

    __slots__ = ("_acceptor", "address", "client", "data", "dropped", "since", "sock")

    def __init__(self, acceptor: Acceptor, sock: socket.socket, client: tuple[str, int] | None, since: float) -> None:
        self._acceptor = acceptor
        self.sock = sock
        self.client = client
        self.address = "" if client is None else client[0]
        self.since = since
        self.data = b""  # what it has sent
        self.dropped = False

    @property
    def server(self) -> tuple[str, int | None]:
        """The address and port of this end, or the name of a Unix socket."""
        name = self.sock.getsockname()
        return (name, None) if isinstance(name, str) else name[:2]

    def drop(self) -> None:
        """Close the connection, which has no place any more; its protocol does, if it is being made."""
        self.dropped = True
        self._acceptor.let_go(self)


class Acceptor:
    """What listens on one socket; uvicorn closes it as it does asyncio's servers.

    Args:
        sock: listens, and does not block.
        places: counts all connections.
        make_protocol: for a newcomer that has sent a head. It takes `newcomer.data` as received, and asks whether it
            was dropped, when its transport is made.
        head_timeout: seconds until one that has sent nothing is closed, and one that has goes on.
        reads: whether what comes first is a head; False with TLS, where its first byte makes a newcomer go on.
    """

    def __init__(
        self,
        sock: socket.socket,
        places: Places,
        make_protocol: Callable[[Newcomer], asyncio.BaseProtocol],
        *,
        head_timeout: float,
        reads: bool,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._sock = sock
        self._places = places
        self._make_protocol = make_protocol
        self._head_timeout = head_timeout
        self._reads = reads
        self._held: dict[int, Newcomer] = {}  # by descriptor; the oldest first
        self._late: asyncio.TimerHandle | None = None  # while any are held
        self._pause: asyncio.TimerHandle | None = None  # while none are accepted
        self._going_on: set[asyncio.Task[None]] = set()
        self._poller = select.epoll()
        self._loop.add_reader(self._poller.fileno(), self._on_ready)
        self._loop.add_reader(self._sock.fileno(), self._on_listen)

    def close(self) -> None:
        """Take no more connections, and close those that are held."""
        if self._poller.closed:
            return
        if self._pause is None:
            self._loop.remove_reader(self._sock.fileno())
        else:
            self._pause.cancel()
        for newcomer in list(self._held.values()):
            self._end(newcomer)
        self._loop.remove_reader(self._poller.fileno())
        self._poller.close()

    async def wait_closed(self) -> None:
        """Until those that were going on have their protocols."""
        await asyncio.gather(*self._going_on)

    def let_go(self, newcomer: Newcomer) -> None:
        """Close its socket, if it is held."""
        if self._release(newcomer):
            newcomer.sock.close()

    def _on_listen(self) -> None:
        for number in range(_AT_ONCE):
            try:
                sock, peer = self._sock.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _NO_ROOM:
                    if number == 0:  # else there may be no other: accept(2) takes a descriptor before it looks
                        self._make_room(error)
                    return
                continue  # it has gone already, or what its network reports (accept(2))
            newcomer = Newcomer(self, sock, peer[:2] if isinstance(peer, tuple) else None, self._loop.time())
            self._places.add(newcomer)
            if self._reads and self._read(newcomer):
                return  # it needs its turn of the event loop anyway; looking for another costs an error, mostly
            self._hold(newcomer)

    def _make_room(self, error: OSError) -> None:
        """There is neither descriptor nor memory for a connection: another gives way, or none is taken for a while."""
        if self._places.give_way():
            return
        _log.warning("No connection can be accepted: %s.", error.strerror)
        self._loop.remove_reader(self._sock.fileno())
        self._pause = self._loop.call_later(_PAUSE, self._listen_again)

    def _listen_again(self) -> None:
        self._pause = None
        self._loop.add_reader(self._sock.fileno(), self._on_listen)

    def _on_ready(self) -> None:
        for fd, _ in self._poller.poll(0, _AT_ONCE):
            newcomer = self._held.get(fd)
            if newcomer is None:  # dropped by one before it
                continue
            if not self._reads:
                self._go_on(newcomer)
            else:
                self._read(newcomer)

    def _read(self, newcomer: Newcomer) -> bool:
        """Whether that was enough for it to go on, or to end."""
        try:
            piece = newcomer.sock.recv(_PIECE, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            self._end(newcomer)
            return True
        newcomer.data += piece
        if not newcomer.data:
            self._end(newcomer)
        elif not piece or len(newcomer.data) > _MOST_HELD or not is_beginning(newcomer.data):
            self._go_on(newcomer)
        else:
            return False
        return True

    def _hold(self, newcomer: Newcomer) -> None:
        descriptor = newcomer.sock.fileno()
        self._held[descriptor] = newcomer
        self._poller.register(descriptor, _READABLE)
        if self._late is None:
            self._await_late()

    def _release(self, newcomer: Newcomer) -> bool:
        """Hold it no longer; False if it was not held."""
        if self._held.get(newcomer.sock.fileno()) is not newcomer:
            return False
        del self._held[newcomer.sock.fileno()]
        self._poller.unregister(newcomer.sock.fileno())
        if not self._held and self._late is not None:
            self._late.cancel()
            self._late = None
        return True

    def _on_late(self) -> None:
        self._late = None
        for newcomer in list(islice(self._held.values(), _AT_ONCE)):
            if newcomer.since + self._head_timeout > self._loop.time():
                break
            if newcomer.data:
                self._go_on(newcomer)
            else:
                self._end(newcomer)
        self._await_late()

    def _await_late(self) -> None:
        if self._held and self._late is None:
            oldest = next(iter(self._held.values()))
            self._late = self._loop.call_at(oldest.since + self._head_timeout, self._on_late)

    def _end(self, newcomer: Newcomer) -> None:
        self._release(newcomer)
        newcomer.sock.close()
        self._places.remove(newcomer)

    def _go_on(self, newcomer: Newcomer) -> None:
        self._release(newcomer)
        task = self._loop.create_task(self._connect(newcomer))
        self._going_on.add(task)
        task.add_done_callback(self._going_on.discard)

    async def _connect(self, newcomer: Newcomer) -> None:
        try:
            await self._loop.connect_accepted_socket(lambda: self._make_protocol(newcomer), newcomer.sock)
        except OSError as error:
            _log.warning("A connection cannot be served: %s.", error.strerror)
            newcomer.sock.close()
            self._places.remove(newcomer)
