"""From the request of a generation to its response, for protocols whose answers cannot be resumed.

Owns the order: the body, the engine that must be ready, the reading in a thread if it takes long. Does not know fields.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple

from rbee.server.protocols.parameters import DEADLINE_HEADER
from rbee.server.streams.exchange import GenerationResponse

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.requests import Request

    from rbee.messages import Ready
    from rbee.server.http.body import Bodies
    from rbee.server.streams.dialect import Dialect
    from rbee.server.streams.exchange import Backend
    from rbee.server.streams.generation import Generation


class Arrival(NamedTuple):
    """A request as it came, beside its body."""

    request_id: str
    deadlines: list[str]  # the values of its X-Request-Deadline headers
    received_ns: int  # see `rbee.server.streams.generation.Generation`
    engine: Ready  # the one that runs


class Asked(NamedTuple):
    """What a request asks for."""

    generation: Generation
    dialect: Dialect
    stream: bool  # whether the client wants the answer as it comes


async def respond(
    backend: Backend, bodies: Bodies, request: Request, read: Callable[[bytes, Arrival], Asked]
) -> GenerationResponse:
    """The response to `request`, whose body `read` turns into what it asks for."""
    async with bodies.reading(request) as body:
        arrival = Arrival(
            request_id=request.scope["state"]["request_id"],
            deadlines=request.headers.getlist(DEADLINE_HEADER),
            received_ns=time.monotonic_ns(),
            engine=backend.supervisor.check_ready(),
        )
        asked = await bodies.work(request, body, read, arrival)
    return GenerationResponse(backend, asked.generation, asked.dialect, stream=asked.stream)
