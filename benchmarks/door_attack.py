"""The attackers of bench_door.py: connections that send something and never an end.

Owns what they send. One process holds them all; it sends whatever the server takes, and does not come back where it is
refused, but for the flood of trailers. Does not know what is measured.
"""

from __future__ import annotations

import select
import socket
import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from faulty_server import hang_up

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    from door_clients import Address

HALF_SENT, BODY, TRAILERS = "half-sent", "unfinished body", "trailers"
_BODY_BYTES = 15 * 2**20
_PIECE = 64 * 1024  # bytes of one send of trailers
_OPENED_AT_ONCE = 100  # connections between two looks at the others
_PAUSE = 0.01  # seconds before a refused connection of the flood comes again


@dataclass
class _Attacker:
    kind: str
    sock: socket.socket
    left: memoryview  # to be sent

    @property
    def has_more(self) -> bool:
        """Whether it has not sent all that it has."""
        return bool(self.left) or self.kind == TRAILERS


class Attack:
    """So many attackers of each kind; `counts` says what became of them."""

    def __init__(self, address: Address, half_sent: int, bodies: int, floods: int) -> None:
        self._address = address
        head = f"POST /v1/completions HTTP/1.1\r\nHost: {address[0]}\r\nContent-Type: application/json\r\n"
        part = memoryview((head + "X-Part: of a he").encode())
        body = memoryview(f"{head}Content-Length: {_BODY_BYTES}\r\n\r\n".encode() + b" " * (_BODY_BYTES - 1))
        request = '{"prompt":"x","max_tokens":1}'
        chunked = f"{head}Transfer-Encoding: chunked\r\n\r\n{len(request):x}\r\n{request}\r\n0\r\n"
        self._flood = memoryview(chunked.encode() + b"X-Trailer: for ever\r\n" * (_PIECE // 21))
        self._trailers = memoryview(b"X-Trailer: for ever\r\n" * (_PIECE // 21))
        nothing = memoryview(b"")
        self._wanted = [(HALF_SENT, nothing if number % 4 == 0 else part) for number in range(half_sent)]
        self._wanted += [(BODY, body)] * bodies
        self._wanted += [(TRAILERS, self._flood)] * floods
        self._wanted.reverse()  # the last is opened first
        self._again: list[float] = []  # when a connection of the flood comes again
        self._poller = select.epoll()
        self._attackers: dict[int, _Attacker] = {}
        self.counts: Counter[str] = Counter()

    def run(self, connection: Connection) -> None:
        """Until the pipe says that it is over; all are gone then."""
        self._poller.register(connection.fileno(), select.EPOLLIN)
        while True:
            for _ in range(min(_OPENED_AT_ONCE, len(self._wanted))):
                self._open(*self._wanted.pop())
            while self._again and self._again[0] <= time.monotonic():
                self._again.pop(0)
                self._open(TRAILERS, self._flood)
            for fd, mask in self._poller.poll(0 if self._wanted else _PAUSE):
                if fd == connection.fileno():
                    if connection.recv() is None:
                        for attacker in self._attackers.values():
                            hang_up(attacker.sock)
                        return
                elif fd in self._attackers:
                    self._go_on(fd, mask)

    def _open(self, kind: str, payload: memoryview) -> None:
        sock = socket.socket()
        sock.setblocking(False)
        self.counts[f"{kind}: opened"] += 1
        sock.connect_ex(self._address)
        self._attackers[sock.fileno()] = _Attacker(kind, sock, payload)
        self._poller.register(sock.fileno(), select.EPOLLIN | select.EPOLLOUT)

    def _go_on(self, fd: int, mask: int) -> None:
        attacker = self._attackers[fd]
        try:
            if mask & ~select.EPOLLOUT:  # an answer, or the end
                answer = attacker.sock.recv(65536)
                if not answer:
                    if mask & (select.EPOLLHUP | select.EPOLLERR) or not attacker.has_more:
                        self._on_end(fd, attacker)
                        return
                    self._poller.modify(fd, select.EPOLLOUT)  # the server has ended its side only: go on
                elif answer.startswith(b"HTTP/1.1 "):
                    self.counts[f"{attacker.kind}: {answer[9:12].decode()}"] += 1
            if mask & select.EPOLLOUT:
                self._send(fd, attacker)
        except BlockingIOError:
            pass
        except OSError:
            self._on_end(fd, attacker)

    def _send(self, fd: int, attacker: _Attacker) -> None:
        if not attacker.left and attacker.kind == TRAILERS:
            attacker.left = self._trailers
        if attacker.left:
            sent = attacker.sock.send(attacker.left[: 4 * _PIECE])
            attacker.left = attacker.left[sent:]
            self.counts[f"{attacker.kind}: bytes"] += sent
        if not attacker.has_more:
            self._poller.modify(fd, select.EPOLLIN)

    def _on_end(self, fd: int, attacker: _Attacker) -> None:
        self._poller.unregister(fd)
        del self._attackers[fd]
        attacker.sock.close()
        self.counts[f"{attacker.kind}: closed"] += 1
        if attacker.kind == TRAILERS:
            self._again.append(time.monotonic() + _PAUSE)


def attack(connection: Connection, address: Address, half_sent: int, bodies: int, floods: int) -> None:
    """An `Attack`, which begins at once; its figures are the counts."""
    attackers = Attack(address, half_sent, bodies, floods)
    connection.send(None)
    attackers.run(connection)
    connection.send(dict(attackers.counts))
