"""From the request of a generation to its response, for protocols whose answers cannot be resumed.

Owns the order: the body, the engine that must be ready, the reading in a thread if it takes long. Does not know fields.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Generic, NamedTuple, Protocol, TypeVar

from rbee.server.protocols.parameters import DEADLINE_HEADER
from rbee.server.streams.exchange import GenerationResponse

if TYPE_CHECKING:
    from starlette.requests import Request

    from rbee.messages import Ready
    from rbee.server.http.body import Bodies
    from rbee.server.streams.dialect import Dialect
    from rbee.server.streams.exchange import Backend
    from rbee.server.streams.generation import Generation
    from rbee.server.text.served_model import ServedModel


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


class Reader(Protocol):
    """Reads a protocol's requests for one model. With `lenient` unknown fields are ignored, else refused."""

    def __init__(self, model: ServedModel, *, num_rings: int, ring_capacity: int, lenient: bool) -> None: ...

    def read(self, body: bytes, arrival: Arrival) -> Asked: ...


_Reader = TypeVar("_Reader", bound=Reader)


class GeneratingApi(Generic[_Reader]):
    """What the routes of such a protocol have in common; a protocol's own is a subclass with a `reader_class`."""

    reader_class: type[_Reader]

    def __init__(self, backend: Backend, model: ServedModel, bodies: Bodies, *, lenient: bool) -> None:
        self._backend = backend
        self._bodies = bodies
        supervisor = backend.supervisor
        self._reader = self.reader_class(
            model, num_rings=supervisor.num_rings, ring_capacity=supervisor.ring_capacity, lenient=lenient
        )

    async def _respond(self, request: Request) -> GenerationResponse:
        """The response to what the request asks for."""
        async with self._bodies.reading(request) as body:
            arrival = Arrival(
                request_id=request.scope["state"]["request_id"],
                deadlines=request.headers.getlist(DEADLINE_HEADER),
                received_ns=time.monotonic_ns(),
                engine=self._backend.supervisor.check_ready(),
            )
            asked = await self._bodies.work(request, body, self._reader.read, arrival)
        return GenerationResponse(self._backend, asked.generation, asked.dialect, stream=asked.stream)
