"""A client that has many conversations with a server at once, and makes those that fail small.

Owns when something is sent. Does not know how a conversation is made, or which answers are right.
"""

from __future__ import annotations

import select
import socket
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from tests.faults.fuzz_answers import WrongError, check, expect
from tests.faults.resume_parts import RESET

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from tests.faults.fuzz_requests import Conversation

_AT_ONCE = 48  # conversations
_PATIENCE = 100.0  # seconds without any event after which the conversations that are left have failed
_LATER = 200  # rounds of the client after which an ending that comes later is due
_ROUND = 0.002  # seconds of a round in which nothing else happens
_WAITING = frozenset({"later", "left"})


@dataclass(eq=False)
class _Talk:
    """A conversation that is going on."""

    number: int
    plan: Conversation
    sock: socket.socket
    pieces: list[bytes]  # the next one last
    received: bytearray = field(default_factory=bytearray)
    rounds: int = 0
    was_reset: bool = False
    ended: bool = False  # the client's side
    over: bool = False


class Failure(NamedTuple):
    """What came back that may not, and from which of the conversations."""

    number: int
    plan: Conversation
    received: bytes
    reason: str


class Client:
    """Has conversations with a server, many at once, and waits `patience` seconds for anything to happen."""

    def __init__(self, address: tuple[str, int], patience: float = _PATIENCE) -> None:
        self._address = address
        self._patience = patience
        self.answered = 0  # conversations that something came back from

    def run(self, plans: Iterable[Conversation]) -> list[Failure]:
        """Those that fail."""
        waiting = enumerate(plans)
        failures: list[Failure] = []
        talks: dict[int, _Talk] = {}
        poll = select.epoll()
        try:
            while True:
                for number, plan in self._next(waiting, _AT_ONCE - len(talks)):
                    talk = self._begin(number, plan)
                    talks[talk.sock.fileno()] = talk
                    poll.register(talk.sock, select.EPOLLIN)
                if not talks:
                    return failures
                busy = [talk for talk in talks.values() if not talk.ended]
                for talk in busy:
                    _send(talk)
                at_once = any(talk.pieces or talk.plan.ending not in _WAITING for talk in busy)
                events = poll.poll(0 if at_once else _ROUND if busy else self._patience)
                for descriptor, _ in events:
                    _receive(talks[descriptor])
                hangs = not (busy or events)
                for talk in [talk for talk in talks.values() if talk.over or hangs]:
                    del talks[talk.sock.fileno()]
                    talk.sock.close()
                    self.answered += bool(talk.received)
                    try:
                        expect(talk.over, "neither answered nor closed")
                        check(talk.plan, bytes(talk.received), was_reset=talk.was_reset)
                    except WrongError as wrong:
                        failures.append(Failure(talk.number, talk.plan, bytes(talk.received), str(wrong)))
        finally:
            poll.close()
            for talk in talks.values():
                talk.sock.close()

    @staticmethod
    def _next(waiting: Iterator[tuple[int, Conversation]], most: int) -> Iterator[tuple[int, Conversation]]:
        for _, pair in zip(range(most), waiting, strict=False):
            yield pair

    def _begin(self, number: int, plan: Conversation) -> _Talk:
        sock = socket.create_connection(self._address)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setblocking(False)
        return _Talk(number, plan, sock, list(reversed(plan.pieces)))


def _send(talk: _Talk) -> None:
    """The next piece, or the end."""
    talk.rounds += 1
    if talk.pieces:
        piece = talk.pieces.pop()
        try:
            number = talk.sock.send(piece) if piece else 0
        except BlockingIOError:
            number = 0
        except ConnectionError:  # the server has closed: what it said before may still be there
            talk.pieces.clear()
            return
        if number < len(piece):
            talk.pieces.append(piece[number:])
        return
    match talk.plan.ending:
        case "answers":
            talk.ended = True
        case "half":
            _end_side(talk)
        case ending if ending in _WAITING and not talk.received and talk.rounds < _LATER:
            pass
        case "later":
            _end_side(talk)
        case ending:
            if ending != "close":
                talk.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            talk.ended = talk.over = True


def _end_side(talk: _Talk) -> None:
    talk.ended = True
    try:
        talk.sock.shutdown(socket.SHUT_WR)
    except OSError:
        talk.was_reset = talk.over = True


def _receive(talk: _Talk) -> None:
    try:
        data = talk.sock.recv(1 << 18)
    except BlockingIOError:
        return
    except ConnectionError:
        talk.was_reset = talk.over = True
        return
    talk.received += data
    talk.over |= not data


def shrink(plan: Conversation, fails: Callable[[Conversation], bool]) -> Conversation:
    """A conversation with fewer pieces and bytes for which `fails` still says so."""
    plan = _with(plan, fails, pieces=(plan.sent,))
    size = len(plan.sent)
    while size := size // 2:
        start = 0
        while start < len(plan.sent):
            sent = plan.sent
            smaller = plan._replace(pieces=(sent[:start] + sent[start + size :],), wanted=None)
            if len(plan.pieces) == 1 and fails(smaller):
                plan = smaller
            else:
                start += size
    return plan


def _with(plan: Conversation, fails: Callable[[Conversation], bool], **changes: Any) -> Conversation:
    """`plan` with these changes if it then still fails."""
    changed = plan._replace(**changes)
    return changed if fails(changed) else plan


def smallest(plans: Sequence[Conversation], fail: Callable[[Sequence[Conversation]], bool]) -> Sequence[Conversation]:
    """Few of these that still fail together."""
    while len(plans) > 1:
        halves = plans[: len(plans) // 2], plans[len(plans) // 2 :]
        failing = next((half for half in halves if fail(half)), None)
        if failing is None:
            break
        plans = failing
    return plans
