"""How many connections a server holds, in all and from one address, and which of them give way.

Owns both bounds. A connection that waits for its client (between two requests, before the end of a head or of a body)
gives way to a new one, the one that has waited longest first: who opens many and sends nothing keeps nobody out. If all
of them are being answered, a new one is answered 503, or /health, and the log says why. Does not know what is asked.

Without the bound no descriptor would be left to say so, nor for an engine that has died and is to be started again.
"""

from __future__ import annotations

import asyncio
import logging
import resource
from collections import Counter
from typing import TYPE_CHECKING, Any, Protocol

from starlette.datastructures import MutableHeaders

from rbee.server.errors import Refusal, RefusalKind
from rbee.server.http import refusals
from rbee.server.http.descriptors import SPARE_DESCRIPTORS
from rbee.server.http.protocol import StreamProtocol

if TYPE_CHECKING:
    from collections.abc import Iterable

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from rbee.server.http.acceptor import Newcomer

_log = logging.getLogger(__name__)

_LAST_PLACES = 16  # connections past the bounds that are held to be told so
_RETRY_AFTER = 5  # seconds
_ALL = ""  # addresses together; no address is empty
_MANY = 2**31  # connections, where the system sets no limit


class Connection(Protocol):
    """What may have a place: a Newcomer, or the protocol that it gets."""

    @property
    def address(self) -> str:
        """Of its client; "" on a Unix socket."""

    def drop(self) -> None:
        """It has no place any more."""


class Connections:
    """The connections of one server.

    Args:
        limit: of all; 0: as many as the process may open files for.
        per_address: of one client address; 0: no limit of its own.
    """

    def __init__(self, limit: int = 0, per_address: int = 0) -> None:
        self._limit = limit
        self._per_address = per_address
        self._held: set[Connection] = set()
        self._waiting: dict[Connection, None] = {}  # for their clients; the longest first
        self._last: dict[Connection, None] = {}  # past a bound; the oldest first
        self._by_address: Counter[str] = Counter()
        self._limit_before = 0  # as it was when it was last asked for
        self._full: set[str] = set()  # addresses without a place, or _ALL, of which the log has told

    def __len__(self) -> int:
        return len(self._held)

    def add(self, newcomer: Connection) -> None:
        """A new connection, which gets a place if there is one, and is to be told if there is none."""
        address = newcomer.address
        if address and 0 < self._per_address <= self._by_address[address]:
            full = address
            has_place = self._make_way(other for other in self._waiting if other.address == address)
        else:
            full = _ALL
            held = len(self._held)
            has_place = held < self._limit_before or held < self._limit_now() or self._make_way(self._waiting)
        if has_place:
            self._held.add(newcomer)
            self._waiting[newcomer] = None
            self._by_address[address] += 1
            return
        if full not in self._full:
            self._full.add(full)
            _log.warning("%s, and all are being answered: new ones get 503 until some are closed.", self._state(full))
        if len(self._last) >= _LAST_PLACES:
            oldest = next(iter(self._last))
            oldest.drop()
            self.remove(oldest)
        self._last[newcomer] = None

    def hand_over(self, newcomer: Connection, connection: Connection) -> bool:
        """The newcomer has got its protocol: whether it has a place."""
        if newcomer in self._last:
            del self._last[newcomer]
            self._last[connection] = None
            return False
        if newcomer in self._held:
            self._held.remove(newcomer)
            self._held.add(connection)
            del self._waiting[newcomer]
            self._waiting[connection] = None
        return True

    def give_way(self) -> bool:
        """Close the connection that has waited longest for its client; False if none waits."""
        return self._make_way(self._waiting)

    def remove(self, connection: Connection) -> None:
        """A connection has ended."""
        self._last.pop(connection, None)
        if connection not in self._held:
            return
        address = connection.address
        self._held.remove(connection)
        self._waiting.pop(connection, None)
        self._by_address[address] -= 1
        if self._full:
            if len(self._held) < self._limit_now() * 7 // 8:
                self._full.discard(_ALL)
            if self._by_address[address] < self._per_address * 7 / 8:
                self._full.discard(address)
        if not self._by_address[address]:
            del self._by_address[address]

    def waits(self, connection: Connection) -> None:
        """From now on it waits for its client."""
        if connection in self._held:
            self._waiting[connection] = None

    def answers(self, connection: Connection) -> None:
        """From now on its client waits for an answer."""
        self._waiting.pop(connection, None)

    def _limit_now(self) -> int:
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        allowed = _MANY if files == resource.RLIM_INFINITY else files - SPARE_DESCRIPTORS
        self._limit_before = min(self._limit or allowed, allowed)
        return self._limit_before

    def _state(self, full: str) -> str:
        """How many connections an address has, or _ALL, and what bounds them."""
        if full != _ALL:
            return f"{self._by_address[full]} connections of {full} are open (--max-connections-per-address)"
        if self._limit_now() == self._limit:
            remedy = "--max-connections"
        else:
            files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
            remedy = f"this process may open only {files} files: raise the limit with ulimit -n or LimitNOFILE="
        return f"{len(self._held)} connections are open ({remedy})"

    def _make_way(self, candidates: Iterable[Connection]) -> bool:
        """Close one of these, if there is one."""
        for connection in candidates:
            connection.drop()
            self.remove(connection)
            return True
        return False


class BoundedProtocol(StreamProtocol):
    """A StreamProtocol whose connections are counted among `places`.

    Args:
        newcomer: what the connection was before.
        places: has counted it from its accept on.
    """

    def __init__(self, *args: Any, newcomer: Newcomer, places: Connections, **kwargs: Any) -> None:
        waited = asyncio.get_running_loop().time() - newcomer.since
        super().__init__(*args, waited=waited, came=newcomer.data, **kwargs)
        newcomer.data = b""
        self._newcomer = newcomer
        self._places = places
        self._has_place: bool | None = None  # None: the newcomer has it
        self.address = newcomer.address
        self.server, self.client = newcomer.server, newcomer.client

    def drop(self) -> None:
        """Close the connection, which has no place any more."""
        self.transport.abort()

    def on_waiting(self) -> None:
        self._places.waits(self)

    def on_answering(self) -> None:
        self._places.answers(self)

    def before_tls(self, carrier: asyncio.Transport) -> None:
        """The connection is there, and its handshake begins; `connection_made` comes when it is over."""
        self.transport = self.carrier = carrier
        self._take_place()

    def after_tls(self) -> None:
        """The descriptor is about to be closed; `connection_lost` comes later, or not at all without a handshake."""
        if self.flow is not None:
            self.flow.end()
        self._places.remove(self)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as in the base class
        self.transport = transport
        if self._has_place is None:
            self._take_place()
        if not self._has_place:
            self.app = _only_health(self.app)
        super().connection_made(transport)
        if self.flow.read_paused:
            self.loop.call_soon(self._pause_again)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._places.remove(self)

    def _pause_again(self) -> None:
        """Under uvloop transports begin to read behind `connection_made`, whatever they were told in it."""
        if self.flow is not None and self.flow.read_paused and not self.transport.is_closing():
            self.transport.pause_reading()

    def _take_place(self) -> None:
        self._has_place = self._places.hand_over(self._newcomer, self)
        if self._newcomer.dropped:
            self.transport.abort()


def _only_health(app: ASGIApp) -> ASGIApp:
    """Answers /health as `app` does and all else with a refusal, and closes the connection then."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        async def send_and_close(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["connection"] = "close"
            await send(message)

        if scope["path"] != "/health":
            refusal = Refusal(
                RefusalKind.UNAVAILABLE,
                "The server has no room for another connection; close some, or try again later.",
                code="too_many_connections",
                retry_after=_RETRY_AFTER,
            )
            scope.setdefault("state", {})[refusals.STATE] = refusal
        await app(scope, receive, send_and_close)

    return answer
