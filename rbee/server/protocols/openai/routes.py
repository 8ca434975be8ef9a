"""OpenAI's routes: chat and plain completions, the model list; and /tokenize, /detokenize as vLLM has them.

Owns the way from a request to its response, or to the stream that it asks the rest of. What a request says is for
`rbee.server.protocols.openai.reader` to read. The response, streamed or not, is an
`rbee.server.streams.exchange.Exchange`, which starts only when it is certain that the engine has taken the request:
every refusal has its true status.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import msgspec
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Route

from rbee.server.errors import ApiError
from rbee.server.http.body import read_json_body
from rbee.server.http.protocol import EXTENSION
from rbee.server.protocols.fields import is_resumable, read_last_event_id
from rbee.server.protocols.openai.reader import RequestReader
from rbee.server.protocols.parameters import DEADLINE_HEADER
from rbee.server.streams.exchange import Exchange, Resumption
from rbee.server.streams.resumption import Ticket

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.requests import Request

    from rbee.messages import Ready
    from rbee.server.http.protocol import StreamWriter
    from rbee.server.link.supervisor import Supervisor
    from rbee.server.streams.exchange import Generation
    from rbee.server.streams.replies import StreamWatch
    from rbee.server.streams.resumption import ResumableStreams
    from rbee.server.text.served_model import ServedModel

# A body up to this size is handled on the event loop (under 2 ms, mostly the tokenizer); a larger one in a thread,
# where the tokenizer runs without Python's lock.
_INLINE_BODY_BYTES = 4096
_CHAT, _COMPLETION = "chat", "completion"


class OpenAiApi:
    """The OpenAI routes of one server."""

    def __init__(
        self,
        supervisor: Supervisor,
        model: ServedModel,
        watch: StreamWatch,
        streams: ResumableStreams,
        *,
        replay_window: int,
        max_body_bytes: int,
        lenient: bool,
    ) -> None:
        self._supervisor = supervisor
        self._model = model
        self._watch = watch
        self._streams = streams
        self._replay_window = replay_window
        self._max_body_bytes = max_body_bytes
        self._reader = RequestReader(
            model, num_rings=supervisor.num_rings, ring_capacity=supervisor.ring_capacity, lenient=lenient
        )
        self._created = int(time.time())

    def routes(self) -> list[Route]:
        """For the application's router."""
        return [
            Route("/v1/chat/completions", self.chat_completions, methods=["POST"]),
            Route("/v1/completions", self.completions, methods=["POST"]),
            Route("/v1/chat/completions/{id}", self.resume_chat, methods=["GET"]),
            Route("/v1/completions/{id}", self.resume_completion, methods=["GET"]),
            Route("/v1/models", self.list_models, methods=["GET"]),
            Route("/v1/models/{name:path}", self.show_model, methods=["GET"]),
            Route("/tokenize", self.tokenize, methods=["POST"]),
            Route("/detokenize", self.detokenize, methods=["POST"]),
        ]

    async def chat_completions(self, request: Request) -> Response:
        """POST /v1/chat/completions."""
        return await self._generate(request, self._reader.read_chat, _CHAT)

    async def completions(self, request: Request) -> Response:
        """POST /v1/completions."""
        return await self._generate(request, self._reader.read_completion, _COMPLETION)

    async def resume_chat(self, request: Request) -> Response:
        """GET /v1/chat/completions/{id}: the rest of a stream, as EventSource asks for it."""
        return self._resume_by_path(request, _CHAT)

    async def resume_completion(self, request: Request) -> Response:
        """GET /v1/completions/{id}."""
        return self._resume_by_path(request, _COMPLETION)

    async def list_models(self, request: Request) -> Response:  # noqa: ARG002 - starlette's signature
        """GET /v1/models: the one there is."""
        return _json({"object": "list", "data": [self._card()]})

    async def show_model(self, request: Request) -> Response:
        """GET /v1/models/{name}."""
        self._reader.check_model(request.path_params["name"])
        return _json(self._card())

    async def tokenize(self, request: Request) -> Response:
        """POST /tokenize: the token ids of a prompt or of messages."""
        body = await read_json_body(request, self._max_body_bytes)
        token_ids = await asyncio.to_thread(self._reader.tokenize, body)
        engine = self._supervisor.ready
        answer = {"count": len(token_ids), "max_model_len": engine and engine.max_model_len, "tokens": token_ids}
        return _json(answer)

    async def detokenize(self, request: Request) -> Response:
        """POST /detokenize: the text of token ids."""
        body = await read_json_body(request, self._max_body_bytes)
        return _json({"prompt": self._reader.detokenize(body)})

    async def _generate(
        self, request: Request, read: Callable[[bytes, list[str], Ready], Generation], kind: str
    ) -> Response:
        body = await read_json_body(request, self._max_body_bytes)
        if "last-event-id" in request.headers:
            return self._resume_by_request_id(request, kind)
        engine = self._supervisor.check_ready()
        deadlines = request.headers.getlist(DEADLINE_HEADER)
        if len(body) <= _INLINE_BODY_BYTES:
            generation = read(body, deadlines, engine)
        else:
            generation = await asyncio.to_thread(read, body, deadlines, engine)
        writer: StreamWriter = request.scope["extensions"][EXTENSION]
        ticket = None
        if generation.n == 1 and is_resumable(generation.options, request.headers.getlist("accept")):
            request_id = request.state.request_id
            ticket = Ticket(self._streams, _owner(request, kind), request_id, self._replay_window)
        exchange = Exchange(self._supervisor, self._model, self._watch, generation, writer, ticket=ticket)
        if generation.stream:
            return exchange
        return await exchange.collect()

    def _resume_by_request_id(self, request: Request, kind: str) -> Response:
        """The request is not run again: it names the stream that it once started."""
        name = request.headers.get("x-request-id", "")
        if name != request.state.request_id:
            raise ApiError(
                400,
                "Last-Event-ID asks for the rest of a stream; send the X-Request-Id of its first response with it, "
                "or leave Last-Event-ID out to start anew.",
                code="missing_request_id",
            )
        return self._resume(request, kind, name)

    def _resume_by_path(self, request: Request, kind: str) -> Response:
        if request.method != "GET":  # HEAD, which would take the stream away from whoever reads it
            raise HTTPException(405, headers={"Allow": "GET"})
        return self._resume(request, kind, request.path_params["id"])

    def _resume(self, request: Request, kind: str, name: str) -> Response:
        last_id = read_last_event_id(request.headers.get("last-event-id", "0"))
        reply = self._streams.find(_owner(request, kind), name)
        if not reply.has_more(last_id):
            return Response(status_code=204)  # which ends an EventSource's attempts
        return Resumption(reply, last_id, request.scope["extensions"][EXTENSION], self._watch)

    def _card(self) -> dict[str, Any]:
        engine = self._supervisor.ready
        return {
            "id": self._model.name,
            "object": "model",
            "created": self._created,
            "owned_by": "rbee",
            "max_model_len": engine and engine.max_model_len,
        }


def _owner(request: Request, kind: str) -> tuple[int | None, str]:
    """Who may resume what a request starts: requests with the same API key, on the same kind of route."""
    return request.state.caller, kind


def _json(content: dict[str, Any]) -> Response:
    return Response(msgspec.json.encode(content), media_type="application/json")
