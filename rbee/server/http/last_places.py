"""The last file descriptors: connections that get one of them are answered 503, or /health, and the log says why.

Owns which connections these are, and which of them give way. Without it, whoever connects when there is no descriptor
left is closed without a word (by libuv, which has a descriptor in reserve for that), and an engine that dies then
cannot be started again. ENFILE, the limit of the whole machine, is left to libuv.
"""

from __future__ import annotations

import logging
import resource
from typing import TYPE_CHECKING, Any

from starlette.datastructures import MutableHeaders

from rbee.server.errors import Refusal, RefusalKind
from rbee.server.http import refusals
from rbee.server.http.protocol import StreamProtocol

if TYPE_CHECKING:
    import asyncio

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

_log = logging.getLogger(__name__)

_LAST_DESCRIPTORS = 32  # below the process's limit; an engine's start needs about ten
_LAST_PLACES = 16  # how many of them connections may hold
_RETRY_AFTER = 5  # seconds


class LastPlaces:
    """The connections of one server that hold one of the last descriptors, oldest first."""

    def __init__(self) -> None:
        self._held: dict[asyncio.Transport, None] = {}
        self._full_at = 0  # connections when the descriptors ran out; 0: there are some

    def take(self, transport: asyncio.Transport, connections: int) -> bool:
        """Whether this new connection, one of so many, is held here; then the oldest one held may be closed."""
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        if limit == resource.RLIM_INFINITY:
            return False
        descriptor = transport.get_extra_info("socket").fileno()  # the kernel gives the lowest that is free
        if descriptor < limit - _LAST_DESCRIPTORS:
            return False
        if not self._full_at:
            self._full_at = connections
            _log.warning(
                "%d connections are open, and this process may open only %d files: new connections get 503 until some "
                "are closed. Raise the limit (ulimit -n, systemd's LimitNOFILE=).",
                connections,
                limit,
            )
        if len(self._held) >= _LAST_PLACES:
            oldest = next(iter(self._held))
            del self._held[oldest]
            oldest.abort()
        self._held[transport] = None
        return True

    def leave(self, transport: asyncio.Transport, connections: int) -> None:
        """A connection has ended, and so many are left."""
        self._held.pop(transport, None)
        if self._full_at and connections < self._full_at - self._full_at // 8:
            self._full_at = 0


class LastPlacesProtocol(StreamProtocol):
    """A StreamProtocol whose connections may be held in `places`."""

    def __init__(self, *args: Any, places: LastPlaces, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._places = places

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as in the base class
        super().connection_made(transport)
        if self._places.take(transport, len(self.connections)):
            self.app = _only_health(self.app)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._places.leave(self.transport, len(self.connections))


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
