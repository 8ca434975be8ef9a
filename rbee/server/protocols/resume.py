"""GET /v1/streams/{id}: the rest of a stream that lost its connection, in the words of the protocol that began it.

Owns how a request names a stream: by the server's own id, which nobody can guess. `rbee.server.streams.resumption` owns
which events it still lacks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Route

from rbee.server.errors import invalid
from rbee.server.protocols.openapi import Operation
from rbee.server.streams.exchange import Resumption
from rbee.server.streams.resumption import Ticket, read_last_event_id

if TYPE_CHECKING:
    from collections.abc import Hashable

    from starlette.requests import Request

    from rbee.server.streams.live import ReplyWatch
    from rbee.server.streams.resumption import ResumableStreams


_MAX_SHOWN = 128  # characters of a name that is unknown


class Resuming:
    """Streams that can be resumed, for all protocols of a server.

    `replay_window` is in tokens. `events` are the shapes of what such streams hold.
    """

    def __init__(
        self, streams: ResumableStreams, watch: ReplyWatch, *, replay_window: int, events: tuple[Any, ...]
    ) -> None:
        self._events = events
        self._streams = streams
        self._watch = watch
        self._replay_window = replay_window

    def routes(self) -> list[Route]:
        return [Route("/v1/streams/{id}", self.resume, methods=["GET"])]

    def operations(self) -> list[Operation]:
        summary = "The rest of a stream that lost its connection (Last-Event-ID)."
        return [Operation("GET", "/v1/streams/{id}", summary, events=self._events, kind=None, refusals=(404, 409, 410))]

    async def resume(self, request: Request) -> Response:
        if request.method != "GET":  # HEAD, which would take the stream away from its reader
            raise HTTPException(405, headers={"Allow": "GET"})
        name = request.path_params["id"]
        return self._rest(request, name, name)

    def ticket(self, request: Request, kind: str, stream_id: str) -> Ticket:
        """Lets the client of a POST resume the stream that it starts.

        `kind` is what the route generates: the same POST, sent again to resume, must ask for the same. An X-Request-Id
        is a name only if the server has made it: two clients may choose the same.
        """
        names: list[Hashable] = [stream_id, (kind, stream_id)]
        request_id = request.state.request_id
        if request.headers.get("x-request-id") != request_id:
            names += [request_id, (kind, request_id)]
        return Ticket(self._streams, request.state.caller, tuple(names), self._replay_window)

    def by_post(self, request: Request, kind: str) -> Response:
        """The answer to a POST with Last-Event-ID: it is not run again, but gets the rest of its stream."""
        name = request.headers.get("x-stream-id") or request.headers.get("x-request-id")
        if not name:
            raise invalid(
                None,
                "Last-Event-ID asks for the rest of a stream; send the X-Stream-Id of its first response with it, "
                "or leave Last-Event-ID out to start anew.",
                code="missing_stream_id",
            )
        return self._rest(request, (kind, name), name)

    def _rest(self, request: Request, name: Hashable, shown: str) -> Response:
        last_id = read_last_event_id(request.headers.get("last-event-id") or "0")
        reply = self._streams.find(request.state.caller, name, shown[:_MAX_SHOWN])
        reply.check_replay(last_id)
        if not reply.has_more(last_id):
            return Response(status_code=204)  # which ends an EventSource's attempts
        return Resumption(reply, last_id, self._watch)
