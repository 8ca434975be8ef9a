"""Anthropic's routes: Messages, and the number of tokens that one would have.

Owns the way from a request to its response. Does not know fields or limits: `rbee.server.protocols.anthropic.reader`
reads a request's content. The headers anthropic-version and anthropic-beta change nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.routing import Route

from rbee.server.http.responses import json_response
from rbee.server.protocols.anthropic import answers
from rbee.server.protocols.anthropic.errors import REQUEST_ID, AnthropicError
from rbee.server.protocols.anthropic.reader import MessagesReader
from rbee.server.protocols.anthropic.schemas import ADVISORY, NEUTRAL, CountRequest, MessagesRequest
from rbee.server.protocols.generating import GeneratingApi
from rbee.server.protocols.openapi import Body, Operation

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response


PATH = "/v1/messages"  # and all below it


class AnthropicApi(GeneratingApi[MessagesReader]):
    """Anthropic's routes of one server."""

    reader_class = MessagesReader

    def routes(self) -> list[Route]:
        return [
            Route(PATH, self.messages, methods=["POST"]),
            Route(f"{PATH}/count_tokens", self.count_tokens, methods=["POST"]),
        ]

    def operations(self) -> list[Operation]:
        message, count = Body(MessagesRequest, ADVISORY, NEUTRAL), Body(CountRequest, ADVISORY, NEUTRAL)
        return [
            Operation(
                "POST",
                PATH,
                "Answer a conversation.",
                message,
                answer=(answers.AnthropicMessage,),
                events=(*answers.STREAMED, AnthropicError),
                error=AnthropicError,
            ),
            Operation(
                "POST",
                f"{PATH}/count_tokens",
                "How many tokens a conversation has.",
                count,
                answer=(answers.TokenCount,),
                error=AnthropicError,
            ),
        ]

    async def messages(self, request: Request) -> Response:
        return await self._respond(request)

    async def count_tokens(self, request: Request) -> Response:
        engine = self._backend.supervisor.ready
        max_model_len = engine.max_model_len if engine else 0
        async with self._bodies.reading(request) as body:
            count = await self._bodies.work(request, body, self._reader.count, max_model_len)
        return json_response({"input_tokens": count}, headers={REQUEST_ID: request.scope["state"]["request_id"]})
