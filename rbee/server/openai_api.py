"""OpenAI's routes: chat and plain completions, the model list; and /tokenize, /detokenize as vLLM has them.

Owns the way from a request's bytes to a checked generation, or to the stream that it asks the rest of. Its response,
streamed or not, is an `rbee.server.exchange.Exchange`, which starts only when it is certain that the engine has taken
the request: every refusal has its true status.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import msgspec
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Route

from rbee.server.body import read_json_body
from rbee.server.errors import ApiError, invalid
from rbee.server.exchange import Exchange, Generation, Resumption
from rbee.server.http_protocol import EXTENSION
from rbee.server.resumption import Ticket
from rbee.server.schemas import DetokenizeRequest, TokenizeRequest
from rbee.server.validation import (
    DEFAULT_COMPLETION_TOKENS,
    FieldReader,
    check_token_ids,
    decode_object,
    is_resumable,
    output_limit,
    read_chat,
    read_completion,
    read_last_event_id,
    read_messages,
    read_stream_options,
    sampling_params,
    stop_strings,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.requests import Request

    from rbee.messages import Ready
    from rbee.server.http_protocol import StreamWriter
    from rbee.server.replies import StreamWatch
    from rbee.server.resumption import ResumableStreams
    from rbee.server.schemas import GenerationRequest
    from rbee.server.served_model import ServedModel
    from rbee.server.supervisor import Supervisor

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
        self._lenient = lenient
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
        return await self._generate(request, self._read_chat, _CHAT)

    async def completions(self, request: Request) -> Response:
        """POST /v1/completions."""
        return await self._generate(request, self._read_completion, _COMPLETION)

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
        self._check_model(request.path_params["name"])
        return _json(self._card())

    async def tokenize(self, request: Request) -> Response:
        """POST /tokenize: the token ids of a prompt or of messages."""
        body = await read_json_body(request, self._max_body_bytes)
        token_ids = await asyncio.to_thread(self._tokenize, body)
        engine = self._supervisor.ready
        answer = {"count": len(token_ids), "max_model_len": engine and engine.max_model_len, "tokens": token_ids}
        return _json(answer)

    async def detokenize(self, request: Request) -> Response:
        """POST /detokenize: the text of token ids."""
        body = await read_json_body(request, self._max_body_bytes)
        asked = FieldReader(lenient=self._lenient).read(decode_object(body), DetokenizeRequest, {})
        self._check_model(asked.model)
        check_token_ids(asked.tokens, "tokens", self._model.codec.size)
        return _json({"prompt": self._model.codec.decode(asked.tokens)})

    async def _generate(self, request: Request, read: Callable[[bytes, Ready], Generation], kind: str) -> Response:
        body = await read_json_body(request, self._max_body_bytes)
        if "last-event-id" in request.headers:
            return self._resume_by_request_id(request, kind)
        engine = self._supervisor.check_ready()
        if len(body) <= _INLINE_BODY_BYTES:
            generation = read(body, engine)
        else:
            generation = await asyncio.to_thread(read, body, engine)
        writer: StreamWriter = request.scope["extensions"][EXTENSION]
        ticket = None
        if is_resumable(generation.options, request.headers.getlist("accept")):
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

    def _read_chat(self, body: bytes, engine: Ready) -> Generation:
        reader = FieldReader(lenient=self._lenient)
        request, messages = read_chat(decode_object(body), reader)
        self._check_model(request.model)
        text = self._chat_prompt(
            messages,
            add_generation_prompt=request.add_generation_prompt,
            continue_final_message=request.continue_final_message,
            variables=request.chat_template_kwargs,
        )
        prompt = self._model.codec.encode(text, add_special_tokens=False)  # the template writes them
        return self._generation(request, reader, prompt, output_limit(request), engine, chat=True)

    def _read_completion(self, body: bytes, engine: Ready) -> Generation:
        reader = FieldReader(lenient=self._lenient)
        request, given = read_completion(decode_object(body), reader)
        self._check_model(request.model)
        if isinstance(given, str):
            prompt = self._model.codec.encode(given, add_special_tokens=True)
        else:
            prompt = given
            check_token_ids(prompt, "prompt", engine.vocab_size)
        max_tokens = request.max_tokens or DEFAULT_COMPLETION_TOKENS
        return self._generation(request, reader, prompt, max_tokens, engine, chat=False)

    def _generation(
        self,
        request: GenerationRequest,
        reader: FieldReader,
        prompt: list[int],
        max_tokens: int | None,
        engine: Ready,
        *,
        chat: bool,
    ) -> Generation:
        sampling = sampling_params(
            request,
            max_tokens=max_tokens,
            prompt_tokens=len(prompt),
            max_model_len=engine.max_model_len,
            vocab_size=engine.vocab_size,
            end_token_ids=self._model.end_token_ids,
        )
        return Generation(
            chat=chat,
            prompt=prompt,
            sampling=sampling,
            stops=stop_strings(request),
            stream=request.stream,
            options=read_stream_options(request, reader),
            ignored=reader.ignored,
        )

    def _tokenize(self, body: bytes) -> list[int]:
        reader = FieldReader(lenient=self._lenient)
        asked = reader.read(decode_object(body), TokenizeRequest, {})
        self._check_model(asked.model)
        if (asked.prompt is None) == (asked.messages is None):
            raise invalid("prompt", "Send either prompt or messages.")
        if asked.messages is None:
            text, special = asked.prompt or "", True
        else:
            messages = read_messages(asked.messages, reader)
            text, special = self._chat_prompt(messages, add_generation_prompt=asked.add_generation_prompt), False
        add_special_tokens = special if asked.add_special_tokens is None else asked.add_special_tokens
        return self._model.codec.encode(text, add_special_tokens=add_special_tokens)

    def _chat_prompt(self, messages: list[dict[str, Any]], **options: Any) -> str:
        if self._model.chat_template is None:
            raise ApiError(
                400,
                f"The model {self._model.name!r} has no chat template; use /v1/completions.",
                code="no_chat_template",
            )
        return self._model.chat_template.render(messages, **options)

    def _check_model(self, name: str | None) -> None:
        """A request may leave the model out: there is only one."""
        if name is not None and name != self._model.name:
            raise ApiError(
                404,
                f"The model {name!r} is not served here; this is {self._model.name!r}.",
                param="model",
                code="model_not_found",
            )

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
