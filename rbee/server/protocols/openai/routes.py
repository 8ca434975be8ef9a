"""OpenAI's routes: chat and plain completions; /tokenize and /detokenize of vLLM, and /apply-template of llama.cpp.

Owns the way from a request to its response, or to the stream whose rest it asks for. Does not know fields or limits:
`rbee.server.protocols.openai.reader` reads a request's content.
"""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING

from starlette.routing import Route

from rbee.server.http.responses import json_response
from rbee.server.protocols.openai import answers
from rbee.server.protocols.openai.embeddings import EmbeddingsApi
from rbee.server.protocols.openai.reader import RequestReader
from rbee.server.protocols.openai.schemas import (
    ADVISORY_CHAT,
    ADVISORY_COMPLETION,
    CHAT_SYNONYMS,
    NEUTRAL_CHAT,
    NEUTRAL_COMPLETION,
    SYNONYMS,
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    TokenizeRequest,
)
from rbee.server.protocols.openai.tokenizing import TextReader
from rbee.server.protocols.openapi import Body, ErrorEnvelope, Operation
from rbee.server.protocols.parameters import DEADLINE_HEADER
from rbee.server.streams.exchange import GenerationResponse

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.requests import Request
    from starlette.responses import Response

    from rbee.messages import Ready
    from rbee.server.http.body import Bodies
    from rbee.server.protocols.openai.reader import Asked
    from rbee.server.protocols.resume import Resuming
    from rbee.server.streams.exchange import Backend
    from rbee.server.text.served_model import ServedModel

_CHAT, _COMPLETION = "chat", "completion"


class OpenAiApi:
    """The OpenAI routes of one server. With `lenient` unknown fields are ignored, else refused."""

    def __init__(
        self, backend: Backend, model: ServedModel, resuming: Resuming, bodies: Bodies, *, lenient: bool
    ) -> None:
        self._backend = backend
        self._resuming = resuming
        self._bodies = bodies
        supervisor = backend.supervisor
        limits = {"num_rings": supervisor.num_rings, "ring_capacity": supervisor.ring_capacity}
        self._reader = RequestReader(model, **limits, lenient=lenient)
        self._texts = TextReader(model, **limits, lenient=lenient)
        self._embeddings = EmbeddingsApi(backend, model, self._bodies, lenient=lenient)

    def routes(self) -> list[Route]:
        return [
            Route("/v1/chat/completions", self.chat_completions, methods=["POST"]),
            Route("/v1/completions", self.completions, methods=["POST"]),
            Route("/tokenize", self.tokenize, methods=["POST"]),
            Route("/detokenize", self.detokenize, methods=["POST"]),
            Route("/apply-template", self.apply_template, methods=["POST"]),
            *self._embeddings.routes(),
        ]

    def operations(self) -> list[Operation]:
        chat = Body(ChatRequest, ADVISORY_CHAT, NEUTRAL_CHAT, CHAT_SYNONYMS)
        completion = Body(CompletionRequest, ADVISORY_COMPLETION, NEUTRAL_COMPLETION, SYNONYMS)
        generates = partial(Operation, "POST", refusals=(409, 410))
        return [
            generates(
                "/v1/chat/completions",
                "Answer a conversation.",
                chat,
                answer=(answers.ChatCompletion,),
                events=(answers.ChatChunk, ErrorEnvelope),
            ),
            generates(
                "/v1/completions",
                "Continue a text.",
                completion,
                answer=(answers.Completion,),
                events=(answers.CompletionChunk, ErrorEnvelope),
            ),
            *self._embeddings.operations(),
            Operation(
                "POST",
                "/tokenize",
                "The token ids of a text or a conversation.",
                Body(TokenizeRequest),
                answer=(answers.TokenizeAnswer,),
            ),
            Operation(
                "POST",
                "/detokenize",
                "The text of token ids.",
                Body(DetokenizeRequest),
                answer=(answers.DetokenizeAnswer,),
            ),
            Operation(
                "POST",
                "/apply-template",
                "The prompt of a conversation.",
                chat,
                answer=(answers.AppliedTemplate,),
            ),
        ]

    async def chat_completions(self, request: Request) -> Response:
        return await self._generate(request, self._reader.read_chat, _CHAT)

    async def completions(self, request: Request) -> Response:
        return await self._generate(request, self._reader.read_completion, _COMPLETION)

    async def tokenize(self, request: Request) -> Response:
        engine = self._backend.supervisor.ready
        max_model_len = engine and engine.max_model_len

        def answer(body: bytes) -> Response:
            token_ids, names = self._texts.tokenize(body, max_model_len or 0)
            shown = {"count": len(token_ids), "max_model_len": max_model_len, "tokens": token_ids, "token_strs": names}
            return json_response(shown)

        async with self._bodies.reading(request) as body:
            return await self._bodies.work(request, body, answer)

    async def detokenize(self, request: Request) -> Response:
        def answer(body: bytes) -> Response:
            return json_response({"prompt": self._texts.detokenize(body)})

        async with self._bodies.reading(request) as body:
            return await self._bodies.work(request, body, answer)

    async def apply_template(self, request: Request) -> Response:
        engine = self._backend.supervisor.ready
        max_model_len = engine.max_model_len if engine else 0

        def answer(body: bytes) -> Response:
            return json_response({"prompt": self._texts.apply_template(body, max_model_len)})

        async with self._bodies.reading(request) as body:
            return await self._bodies.work(request, body, answer)

    async def _generate(
        self, request: Request, read: Callable[[bytes, list[str], Ready, int], Asked], kind: str
    ) -> Response:
        async with self._bodies.reading(request) as body:
            received_ns = time.monotonic_ns()
            if request.headers.get("last-event-id"):  # empty is none, as for EventSource
                return self._resuming.by_post(request, kind)
            engine = self._backend.supervisor.check_ready()
            deadlines = request.headers.getlist(DEADLINE_HEADER)
            asked = await self._bodies.work(request, body, read, deadlines, engine, received_ns)
        generation, dialect, stream, resumable = asked
        ticket = None
        if resumable:
            ticket = self._resuming.ticket(request, kind, dialect.answer_id)
        return GenerationResponse(self._backend, generation, dialect, stream=stream, ticket=ticket)
