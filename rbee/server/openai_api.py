"""OpenAI's routes: chat and plain completions, the model list; and /tokenize, /detokenize as vLLM has them.

Owns the way from a request's bytes to a submitted request, and from its end to the end of the response. What happens
to the tokens in between is `rbee.server.replies`' business. A response starts only when it is certain that the engine
has taken the request: every refusal has its true status.
"""

from __future__ import annotations

import asyncio
import re
import time
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.routing import Route

from rbee.errors import QueueFullError
from rbee.server import sse
from rbee.server.body import read_json_body
from rbee.server.errors import ApiError, invalid
from rbee.server.http_protocol import EXTENSION, StreamWriter
from rbee.server.replies import CollectedReply, KeepAlive, StreamedReply, TokenText
from rbee.server.schemas import DetokenizeRequest, StreamOptions, TokenizeRequest
from rbee.server.stop_strings import StopStrings
from rbee.server.validation import (
    DEFAULT_COMPLETION_TOKENS,
    FieldReader,
    check_token_ids,
    decode_object,
    output_limit,
    read_chat,
    read_completion,
    read_messages,
    read_stream_options,
    sampling_params,
    stop_strings,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.requests import Request
    from starlette.types import Receive, Scope, Send

    from rbee.messages import Ready
    from rbee.sampling_params import SamplingParams
    from rbee.server.schemas import GenerationRequest
    from rbee.server.served_model import ServedModel
    from rbee.server.supervisor import Supervisor

# A body up to this size is handled on the event loop (under 2 ms, mostly the tokenizer); a larger one in a thread,
# where the tokenizer runs without Python's lock.
_INLINE_BODY_BYTES = 4096


@dataclass(frozen=True, kw_only=True)
class Generation:
    """A checked request, ready to be submitted."""

    chat: bool
    prompt: list[int]
    sampling: SamplingParams
    stops: list[str]
    stream: bool
    options: StreamOptions
    ignored: list[str]


class OpenAiApi:
    """The OpenAI routes of one server."""

    def __init__(
        self, supervisor: Supervisor, model: ServedModel, keep_alive: KeepAlive, *, max_body_bytes: int, lenient: bool
    ) -> None:
        self._supervisor = supervisor
        self._model = model
        self._keep_alive = keep_alive
        self._max_body_bytes = max_body_bytes
        self._lenient = lenient
        self._created = int(time.time())

    def routes(self) -> list[Route]:
        """For the application's router."""
        return [
            Route("/v1/chat/completions", self.chat_completions, methods=["POST"]),
            Route("/v1/completions", self.completions, methods=["POST"]),
            Route("/v1/models", self.list_models, methods=["GET"]),
            Route("/v1/models/{name:path}", self.show_model, methods=["GET"]),
            Route("/tokenize", self.tokenize, methods=["POST"]),
            Route("/detokenize", self.detokenize, methods=["POST"]),
        ]

    async def chat_completions(self, request: Request) -> Response:
        """POST /v1/chat/completions."""
        return await self._generate(request, self._read_chat)

    async def completions(self, request: Request) -> Response:
        """POST /v1/completions."""
        return await self._generate(request, self._read_completion)

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

    async def _generate(self, request: Request, read: Callable[[bytes, Ready], Generation]) -> Response:
        body = await read_json_body(request, self._max_body_bytes)
        engine = self._supervisor.check_ready()
        if len(body) <= _INLINE_BODY_BYTES:
            generation = read(body, engine)
        else:
            generation = await asyncio.to_thread(read, body, engine)
        writer: StreamWriter = request.scope["extensions"][EXTENSION]
        exchange = _Exchange(self._supervisor, self._model, self._keep_alive, generation, writer)
        if generation.stream:
            return exchange
        return await exchange.collect()

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


class _Exchange(Response):
    """One generation and its response. As a response it streams; `collect` gives one that does not."""

    def __init__(
        self,
        supervisor: Supervisor,
        model: ServedModel,
        keep_alive: KeepAlive,
        generation: Generation,
        writer: StreamWriter,
    ) -> None:
        self.background = None
        self._supervisor = supervisor
        self._model = model
        self._keep_alive = keep_alive
        self._generation = generation
        self._writer = writer
        self._id = ("chatcmpl-" if generation.chat else "cmpl-") + uuid.uuid4().hex
        self._created = int(time.time())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI's signature
        """Stream the generation: start, frames as tokens come, one end."""
        generation = self._generation
        frames = sse.Frames(
            kind="chat.completion.chunk" if generation.chat else "text_completion",
            request_id=self._id,
            created=self._created,
            model=self._model.name,
            chat=generation.chat,
            usage=generation.options.include_usage and not generation.options.continuous_usage_stats,
        )
        reply = StreamedReply(self._text(), self._writer, frames, generation.options, len(generation.prompt))
        self._submit(reply)
        try:
            if self._writer.paused:  # an earlier response on this connection is not read yet: send() will wait
                reply.on_pause()
            headers = [*sse.HEADERS, *_warning(generation.ignored)]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            self._writer.open(reply)
            reply.on_resume()
            self._keep_alive.add(reply)
            await reply.done
        finally:
            reply.stream.cancel()
            self._keep_alive.discard(reply)
            self._writer.close()
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def collect(self) -> Response:
        """Wait for the end; the whole answer as one response."""
        generation = self._generation
        reply = CollectedReply(self._text())
        self._submit(reply)
        try:
            self._writer.open(reply)
            await reply.done
        finally:
            reply.stream.cancel()
            self._writer.close()
        if self._writer.closed:
            raise ClientDisconnect
        if reply.error is not None:
            raise reply.error
        choice: dict[str, Any] = {"index": 0, "finish_reason": reply.finish_reason, "logprobs": None}
        if generation.chat:
            choice["message"] = {"role": "assistant", "content": reply.text}
        else:
            choice["text"] = reply.text
        prompt_tokens, completion_tokens = len(generation.prompt), reply.completion_tokens
        answer = {
            "id": self._id,
            "object": "chat.completion" if generation.chat else "text_completion",
            "created": self._created,
            "model": self._model.name,
            "choices": [choice],
            "usage": {
                "prompt_tokens": prompt_tokens,
                "completion_tokens": completion_tokens,
                "total_tokens": prompt_tokens + completion_tokens,
            },
        }
        response = _json(answer)
        response.raw_headers.extend(_warning(generation.ignored))
        return response

    def _text(self) -> TokenText:
        generation = self._generation
        stops = StopStrings(generation.stops) if generation.stops else None
        return TokenText(self._model.codec.detokenizer(), stops, generation.sampling.stop_token_ids)

    def _submit(self, reply: StreamedReply | CollectedReply) -> None:
        """Hand the generation to the engine, or refuse it with the status that is true now."""
        self._supervisor.check_ready()
        client = self._supervisor.client
        try:
            reply.stream = client.submit(self._id, self._generation.prompt, self._generation.sampling, reply)
        except QueueFullError as error:
            headers = {"Retry-After": str(client.retry_after())}
            raise ApiError(429, str(error), code="queue_full", headers=headers) from None


def _warning(ignored: list[str]) -> list[tuple[bytes, bytes]]:
    """The header that names the fields that were ignored (RFC 9111 still lists 299: a miscellaneous warning)."""
    if not ignored:
        return []
    names = ", ".join(name if re.fullmatch(r"[\w.\[\]-]{1,64}", name, re.ASCII) else "?" for name in ignored)
    return [(b"warning", f'299 - "ignored: {names}"'.encode())]


def _json(content: dict[str, Any]) -> Response:
    return Response(msgspec.json.encode(content), media_type="application/json")
