"""The route of Responses.

Owns the way from a request to its response. Does not know fields or limits: `rbee.server.protocols.responses.reader`
reads a request's content.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.routing import Route

from rbee.server.protocols.generating import GeneratingApi
from rbee.server.protocols.openapi import Body, Operation
from rbee.server.protocols.responses.answers import STREAMED, ResponseObject
from rbee.server.protocols.responses.reader import ResponsesReader
from rbee.server.protocols.responses.schemas import ADVISORY, NEUTRAL, STATEFUL, ResponsesRequest

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response


class ResponsesApi(GeneratingApi[ResponsesReader]):
    """The route of one server."""

    reader_class = ResponsesReader

    def routes(self) -> list[Route]:
        return [Route("/v1/responses", self.responses, methods=["POST"])]

    def operations(self) -> list[Operation]:
        neutral = NEUTRAL | {name: values for name, (values, _) in STATEFUL.items()}
        body = Body(ResponsesRequest, ADVISORY | {"store"}, neutral)
        summary = "Answer a conversation."
        return [Operation("POST", "/v1/responses", summary, body, answer=(ResponseObject,), events=STREAMED)]

    async def responses(self, request: Request) -> Response:
        return await self._respond(request)
