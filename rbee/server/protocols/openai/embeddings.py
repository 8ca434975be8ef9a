"""POST /v1/embeddings: a vector for each text.

Owns the fields of the request, their limits, and the bytes of the answer. How a text becomes a vector is what the
served model says (`rbee.models.pooling`). Does not know how the engine is asked (`rbee.server.streams.embeddings`).
"""

from __future__ import annotations

import asyncio
import base64
import time
import uuid
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.routing import Route

from rbee.models.pooling import NoPooling
from rbee.pooling_params import PoolingParams
from rbee.server.errors import invalid
from rbee.server.http.writer import writer_of
from rbee.server.protocols.fields import FieldReader, decode_object
from rbee.server.protocols.generation_reader import GenerationReader
from rbee.server.protocols.ignored_fields import warning_header
from rbee.server.protocols.openai.answers import EmbeddingList
from rbee.server.protocols.openapi import Body, Operation
from rbee.server.protocols.parameters import DEADLINE_HEADER, check_token_ids, read_deadline
from rbee.server.streams.embeddings import Embeddings, EmbeddingsAccount, submit
from rbee.server.streams.exchange import requester_of

if TYPE_CHECKING:
    import array
    from collections.abc import Iterator, Sequence

    from starlette.requests import Request
    from starlette.types import Receive, Scope, Send

    from rbee.messages import Ready
    from rbee.models.pooling import ModelPooling
    from rbee.server.http.body import Bodies
    from rbee.server.streams.exchange import Backend
    from rbee.server.text.served_model import ServedModel

MAX_INPUTS = 2048  # OpenAI's limit
MAX_VALUES = 2**22  # in all vectors of an answer, which take 16 MiB
_MAX_PRIORITY = 100
_MAX_SALT_CHARACTERS = 256
_VALUES_AT_ONCE = 4096  # that are written without a break: some 0.5 ms as numbers, less as base64
_FORMATS = ("float", "base64")


class EmbeddingsRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The body of a request."""

    input: str | list[Any]  # a text, token ids, or a list of one of these
    model: str | None = None
    encoding_format: str = "float"  # numbers, or base64 of their little-endian float32
    dimensions: int | None = None  # of a vector; None: as many as the model has
    user: str | None = None  # a label, which changes nothing
    priority: int = 0  # smaller runs earlier
    deadline: str | None = None  # ISO 8601 with a time zone; also the header X-Request-Deadline
    cache_salt: str = ""  # only requests with the same salt share cached prefixes


ADVISORY = frozenset({"user"})  # see `rbee.server.protocols.openai.schemas`


class AskedVectors(NamedTuple):
    """What a request asks for."""

    embeddings: Embeddings
    encoding_format: str
    ignored: Sequence[str]  # fields that are not followed


class EmbeddingsReader:
    """Reads the requests for one model. Runs in the event loop or in a thread, and changes nothing.

    `read` raises Refusal for what cannot be done, naming the field.
    """

    def __init__(self, model: ServedModel, reader: GenerationReader, *, lenient: bool) -> None:
        self._model = model
        self._reader = reader
        self._lenient = lenient

    def read(self, body: bytes, deadlines: list[str], engine: Ready, received_ns: int) -> AskedVectors:
        """`deadlines` are the values of the X-Request-Deadline headers; for `received_ns` see `Embeddings`."""
        fields = FieldReader(lenient=self._lenient)
        request = fields.read(decode_object(body), EmbeddingsRequest, {}, advisory=ADVISORY)
        self._reader.check_model(request.model)
        pooling = self._model.pooling
        if isinstance(pooling, NoPooling):
            raise invalid("model", f"The model {self._model.name!r} {pooling.reason}.", code="no_pooling")
        if not engine.hidden_size:
            raise invalid(
                "model",
                f"The model {self._model.name!r} gives no vectors: the {engine.runner} runner does not see what its "
                "head reads.",
                code="no_pooling",
            )
        _check_fields(request)
        dimensions = _dimensions(request.dimensions, pooling, self._model.name, engine.hidden_size)
        inputs = read_input(request.input)
        _check_number(len(inputs), min(MAX_INPUTS, MAX_VALUES // (dimensions or engine.hidden_size)))
        embeddings = Embeddings(
            received_ns=received_ns,
            prompts=[self._prompt(given, param, engine) for param, given in inputs],
            pooling=PoolingParams(method=pooling.method, dimensions=dimensions, normalize=pooling.normalize),
            priority=request.priority,
            deadline_ns=read_deadline(
                request.deadline, deadlines, wall_ns=time.time_ns(), monotonic_ns=time.monotonic_ns()
            ),
            cache_salt=request.cache_salt,
        )
        return AskedVectors(embeddings, request.encoding_format, fields.ignored)

    def _prompt(self, given: str | list[int], param: str, engine: Ready) -> list[int]:
        """The token ids of one input, which `param` names."""
        if not given:
            raise invalid(param, f"{param} is empty; send a text, or token ids, for each vector.")
        if isinstance(given, str):
            prompt = self._reader.text_prompt(given, engine, param)
            if not prompt:
                raise invalid(param, f"{param} is a text without tokens; send another one.")
            return prompt
        check_token_ids(given, param, engine.vocab_size)
        if len(given) > engine.max_model_len:
            raise invalid(
                param,
                f"This model's maximum context length is {engine.max_model_len} tokens, but {param} has {len(given)}. "
                "Shorten it.",
                code="context_length_exceeded",
            )
        return given


def read_input(given: str | list[Any]) -> list[tuple[str, str | list[int]]]:
    """Each input, and what a refusal calls it; Refusal for what is no input."""
    if isinstance(given, str):
        return [("input", given)]
    if not given:
        raise invalid("input", "input is an empty list; send at least one text.")
    kinds = {str if isinstance(item, str) else list if isinstance(item, list) else int for item in given}
    if len(kinds) > 1:
        raise invalid(
            "input",
            "input mixes kinds; send a text, a list of texts, a list of token ids, or a list of such lists.",
            code="invalid_type",
        )
    if kinds == {int}:
        return [("input", _token_ids(given, "input"))]
    if kinds == {str}:
        return [(f"input[{n}]", text) for n, text in enumerate(given)]
    _check_number(len(given), MAX_INPUTS)
    return [(f"input[{n}]", _token_ids(item, f"input[{n}]")) for n, item in enumerate(given)]


def render(
    vectors: Sequence[array.array[float]], encoding_format: str, model: str, prompt_tokens: int
) -> Iterator[bytes]:
    """The body of an answer, in pieces that are made when they are asked for."""
    piece, num_values = [b'{"object":"list","data":['], 0
    for index, vector in enumerate(vectors):
        if encoding_format == "base64":
            written = b'"%b"' % base64.b64encode(vector)
        else:
            written = msgspec.json.encode(vector.tolist())
        comma = b"," if index else b""
        piece.append(b'%b{"object":"embedding","index":%d,"embedding":%b}' % (comma, index, written))
        num_values += len(vector)
        if num_values >= _VALUES_AT_ONCE:
            yield b"".join(piece)
            piece, num_values = [], 0
    usage = {"prompt_tokens": prompt_tokens, "total_tokens": prompt_tokens}
    piece.append(b"]," + msgspec.json.encode({"model": model, "usage": usage})[1:])
    yield b"".join(piece)


class EmbeddingsApi:
    """The route of one server. With `lenient` unknown fields are ignored, else refused."""

    def __init__(self, backend: Backend, model: ServedModel, bodies: Bodies, *, lenient: bool) -> None:
        self._backend = backend
        self._model = model
        self._bodies = bodies
        supervisor = backend.supervisor
        reader = GenerationReader(model, num_rings=supervisor.num_rings, ring_capacity=supervisor.ring_capacity)
        self._reader = EmbeddingsReader(model, reader, lenient=lenient)

    def routes(self) -> list[Route]:
        return [Route("/v1/embeddings", self.embeddings, methods=["POST"])]

    def operations(self) -> list[Operation]:
        body = Body(EmbeddingsRequest, ADVISORY)
        return [Operation("POST", "/v1/embeddings", "A vector for each text.", body, answer=(EmbeddingList,))]

    async def embeddings(self, request: Request) -> Response:
        async with self._bodies.reading(request) as body:
            received_ns = time.monotonic_ns()
            engine = self._backend.supervisor.check_ready()
            deadlines = request.headers.getlist(DEADLINE_HEADER)
            asked = await self._bodies.work(request, body, self._reader.read, deadlines, engine, received_ns)
        return EmbeddingsResponse(self._backend, self._model.name, asked)


class EmbeddingsResponse(Response):
    """Has the vectors made, and answers with them. Nothing is submitted before the response is asked for."""

    def __init__(self, backend: Backend, model: str, asked: AskedVectors) -> None:
        self.background = None
        self._backend = backend
        self._model = model
        self._asked = asked

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        embeddings, encoding_format, ignored = self._asked
        writer, requester = writer_of(scope, receive, send), requester_of(scope)
        account = EmbeddingsAccount(embeddings, f"embd-{uuid.uuid4().hex}")
        reply = await submit(self._backend, embeddings, account, writer, requester)
        if reply is None:
            raise ClientDisconnect
        scope.setdefault("state", {})["generation"] = account
        vectors = await reply.collect(writer)
        if vectors is None:
            raise ClientDisconnect
        pieces = render(vectors, encoding_format, self._model, embeddings.num_tokens)
        if sum(map(len, vectors)) < _VALUES_AT_ONCE:
            response = Response(b"".join(pieces), media_type="application/json")
            response.raw_headers.extend(warning_header(ignored))
            await response(scope, receive, send)
            return
        await writer.start([(b"content-type", b"application/json"), *warning_header(ignored)])
        for piece in pieces:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
            await asyncio.sleep(0)  # for the streams beside it
            if writer.closed:
                break
        await writer.finish()


def _check_fields(request: EmbeddingsRequest) -> None:
    """Raise Refusal for a value that no model could take."""
    if request.encoding_format not in _FORMATS:
        raise invalid(
            "encoding_format", f"encoding_format must be float or base64, not {request.encoding_format[:64]!r}."
        )
    if not -_MAX_PRIORITY <= request.priority <= _MAX_PRIORITY:
        raise invalid("priority", f"priority must be from -{_MAX_PRIORITY} to {_MAX_PRIORITY}.")
    if len(request.cache_salt) > _MAX_SALT_CHARACTERS:
        raise invalid("cache_salt", f"cache_salt may have at most {_MAX_SALT_CHARACTERS} characters.")


def _dimensions(asked: int | None, pooling: ModelPooling, model: str, hidden_size: int) -> int:
    """As PoolingParams has them."""
    if asked is None or asked == hidden_size:
        return 0
    allowed = pooling.dimensions
    if allowed is None:
        raise invalid(
            "dimensions",
            f"The model {model!r} does not say that its vectors may be cut (Matryoshka), and they have {hidden_size} "
            "values; leave dimensions out.",
        )
    if allowed and asked not in allowed:
        raise invalid("dimensions", f"dimensions must be one of {', '.join(map(str, allowed))} with this model.")
    if not 1 <= asked <= hidden_size:
        raise invalid("dimensions", f"dimensions must be from 1 to {hidden_size}, the length of this model's vectors.")
    return asked


def _check_number(inputs: int, most: int) -> None:
    """Refuse more inputs than the vectors of one answer may be."""
    if inputs > most:
        raise invalid(
            "input",
            f"input holds {inputs} inputs, and a request to this model may have {most}; send them in several requests.",
        )


def _token_ids(given: list[Any], param: str) -> list[int]:
    try:
        return msgspec.convert(given, list[int])
    except msgspec.ValidationError:
        raise invalid(param, f"{param} must hold token ids, which are whole numbers.", code="invalid_type") from None
