"""The processes around a server in bench_door.py: readers of many streams, attackers, and who watches what others feel.

Owns how each behaves on its sockets. Each is a process of its own, so that what it does delays no other's clock; its
parent talks to it through a pipe. Does not know phases or targets.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import select
import socket
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from faulty_server import hang_up

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.connection import Connection

Address = tuple[str, int]

PATIENCE = 60.0  # seconds
HEALTH_PATIENCE = 5.0  # seconds after which an answer counts as failed
_FRAME = b"data: {"
_CONTEXT = multiprocessing.get_context("fork")


class Client:
    """A process that runs `function(connection, *values)`, and has said that it is set up."""

    def __init__(self, function: Callable[..., None], *values: Any) -> None:
        self._connection, theirs = _CONTEXT.Pipe()
        self._process = _CONTEXT.Process(target=function, args=(theirs, *values), daemon=True)
        self._process.start()
        theirs.close()
        self.opened: Any = self._receive()

    def tell(self, phase: str) -> None:
        """From now on its figures belong to `phase`."""
        self._connection.send(phase)

    def end(self) -> Any:
        """Its figures; it is gone then."""
        self._connection.send(None)
        figures = self._receive()
        self._process.join(PATIENCE)
        return figures

    def _receive(self) -> Any:
        if not self._connection.poll(PATIENCE):
            self._process.kill()
            raise SystemExit("A client process does not answer.")
        try:
            return self._connection.recv()
        except EOFError:
            raise SystemExit("A client process has failed; its error is above.") from None


def open_streams(address: Address, request: bytes, number: int) -> list[socket.socket]:
    """Each has sent its first frame."""
    sockets = []
    for _ in range(number):
        sock = socket.create_connection(address, timeout=PATIENCE)
        sock.sendall(request)
        sockets.append(sock)
    for sock in sockets:
        seen = b""
        while _FRAME not in seen:
            piece = sock.recv(65536)
            if not piece:
                raise SystemExit(f"A stream did not begin: {seen[:300]!r}")
            seen += piece
    return sockets


def read_streams(connection: Connection, address: Address, request: bytes, number: int) -> None:
    """Read so many streams as soon as there is something. Its figures: frames by phase, and streams that have ended."""
    sockets = {sock.fileno(): sock for sock in open_streams(address, request, number)}
    connection.send(number)
    poller = select.epoll()
    poller.register(connection.fileno(), select.EPOLLIN)
    for fd, sock in sockets.items():
        sock.setblocking(False)
        poller.register(fd, select.EPOLLIN)
    buffer = bytearray(65536)
    frames, phase = {"": 0}, ""
    ended = 0
    while True:
        for fd, _ in poller.poll():
            if fd == connection.fileno():
                phase = connection.recv()
                if phase is None:
                    for sock in sockets.values():
                        hang_up(sock)
                    connection.send({"frames": frames, "ended": ended})
                    return
                frames[phase] = 0
                continue
            try:
                size = sockets[fd].recv_into(buffer)
            except ConnectionError:
                size = 0
            frames[phase] += buffer.count(_FRAME, 0, size)
            if not size:
                poller.unregister(fd)
                sockets.pop(fd).close()
                ended += 1


@dataclass
class Felt:
    """What one client felt in one phase, in ms."""

    gaps: list[list[float]]  # between successive frames, by stream
    health: list[float] = field(default_factory=list)  # from when it was due to be asked until the answer
    failures: int = 0  # of /health: refused, cut, another answer than 200, or none in time
    late: list[float] = field(default_factory=list)  # how late this client itself asked
    ended: int = 0  # streams


@dataclass
class _Asked:
    sock: socket.socket
    due_ns: int
    felt: Felt
    seen: bytes = b""
    sent: bool = False


class _Watcher:
    """Reads some streams, stamps their frames, and asks /health on fresh connections on a schedule of its own."""

    def __init__(self, address: Address, request: bytes, streams: int, every_ns: int) -> None:
        self._address = address
        self._every_ns = every_ns
        self._get = f"GET /health HTTP/1.1\r\nHost: {address[0]}\r\nConnection: close\r\n\r\n".encode()
        self._streams = dict(enumerate(open_streams(address, request, streams)))
        self._by_fd = {sock.fileno(): index for index, sock in self._streams.items()}
        self._last_ns = [time.monotonic_ns()] * streams
        self._asked: dict[int, _Asked] = {}
        self._poller = select.epoll()
        for sock in self._streams.values():
            sock.setblocking(False)
            self._poller.register(sock.fileno(), select.EPOLLIN)
        self._felt = Felt([[] for _ in range(streams)])
        self._phases = {"": self._felt}

    def run(self, connection: Connection) -> dict[str, Felt]:
        """Until the pipe says None; then until the last /health is answered or late."""
        self._poller.register(connection.fileno(), select.EPOLLIN)
        due_ns, asking = time.monotonic_ns(), bool(self._every_ns)
        ending = False
        while not ending or self._asked:
            now = time.monotonic_ns()
            while asking and now >= due_ns:
                self._ask(due_ns)
                due_ns += self._every_ns
            self._give_up(now)
            wait_ns = due_ns - time.monotonic_ns() if asking else 100_000_000
            select.select([self._poller], [], [], max(0, wait_ns) / 1e9)  # an epoll's own timeout is whole ms
            for fd, _ in self._poller.poll(0):
                if fd == connection.fileno():
                    phase = connection.recv()
                    if phase is None:
                        ending, asking = True, False
                        self._poller.unregister(fd)
                    else:
                        self._felt = self._phases[phase] = Felt([[] for _ in self._last_ns])
                elif fd in self._by_fd:
                    self._read(fd)
                else:
                    self._go_on(fd)
        for sock in self._streams.values():
            hang_up(sock)
        return self._phases

    def _read(self, fd: int) -> None:
        index = self._by_fd[fd]
        try:
            piece = self._streams[index].recv(65536)
        except ConnectionError:
            piece = b""
        now = time.monotonic_ns()
        if not piece:
            self._poller.unregister(fd)
            del self._by_fd[fd]
            self._streams.pop(index).close()
            self._felt.ended += 1
            return
        for _ in range(piece.count(_FRAME)):
            self._felt.gaps[index].append((now - self._last_ns[index]) / 1e6)
            self._last_ns[index] = now

    def _ask(self, due_ns: int) -> None:
        sock = socket.socket()
        sock.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            sock.connect(self._address)
        self._felt.late.append((time.monotonic_ns() - due_ns) / 1e6)
        self._asked[sock.fileno()] = _Asked(sock, due_ns, self._felt)
        self._poller.register(sock.fileno(), select.EPOLLOUT)

    def _go_on(self, fd: int) -> None:
        asked = self._asked[fd]
        try:
            if not asked.sent:
                asked.sock.send(self._get)
                asked.sent = True
                self._poller.modify(fd, select.EPOLLIN)
                return
            piece = asked.sock.recv(65536)
        except OSError:
            piece = b""
        asked.seen += piece
        if piece and b'"ok"}' not in asked.seen:
            return
        if piece and asked.seen.startswith(b"HTTP/1.1 200"):
            asked.felt.health.append((time.monotonic_ns() - asked.due_ns) / 1e6)
        else:
            asked.felt.failures += 1
        self._forget(fd)

    def _give_up(self, now: int) -> None:
        while self._asked:
            fd, asked = next(iter(self._asked.items()))  # the oldest
            if now - asked.due_ns < HEALTH_PATIENCE * 1e9:
                return
            asked.felt.failures += 1
            self._forget(fd)

    def _forget(self, fd: int) -> None:
        self._poller.unregister(fd)
        self._asked.pop(fd).sock.close()


def watch(connection: Connection, address: Address, request: bytes, streams: int, every_ns: int) -> None:
    """A `_Watcher`; its figures: `Felt` by phase. /health is asked every `every_ns`, 0: never."""
    watcher = _Watcher(address, request, streams, every_ns)
    connection.send(streams)
    connection.send(watcher.run(connection))
