"""From a request's bytes to values that are known to be good, or an ApiError that names the field.

Owns how a body, its messages, its prompt and its options are read. Needs no tokenizer and no engine, and does not know
what the parameters mean (`rbee.server.protocols.parameters`). Pure functions.
"""

from __future__ import annotations

import difflib
import re
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from rbee.server.errors import ApiError, invalid
from rbee.server.protocols.openai.schemas import (
    NEUTRAL_CHAT,
    NEUTRAL_COMPLETION,
    NEUTRAL_MESSAGE,
    ChatRequest,
    CompletionRequest,
    GenerationRequest,
    Message,
    Part,
    StreamOptions,
)
from rbee.server.protocols.parameters import check_parameters

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

MAX_STOP_STRINGS = 4
MAX_STOP_BYTES = 1000
DEFAULT_COMPLETION_TOKENS = 16  # OpenAI's default for plain completions
_MAX_DIGITS = 18  # of an event's id

T = TypeVar("T")


class FieldReader:
    """Turns JSON objects into structs, field by field, and remembers what it was told to ignore.

    Args:
        lenient: ignore unknown fields (they are collected in `ignored`) instead of refusing them.
    """

    def __init__(self, *, lenient: bool) -> None:
        self._lenient = lenient
        self.ignored: list[str] = []

    def read(self, given: dict[str, Any], shape: type[T], neutral: Mapping[str, tuple[Any, ...]], path: str = "") -> T:
        """`given` as a `shape`. `path` is where it stands in the request, for messages: "" or "messages[0].".

        Null means absent. A field among `neutral` must have one of the values listed there.

        Raises:
            ApiError: an unknown field, an unsupported one, or a wrong type.
        """
        known = {field.name for field in msgspec.structs.fields(shape)}  # type: ignore[arg-type] # T is a Struct
        fields: dict[str, Any] = {}
        for name, value in given.items():
            if value is None:
                continue
            if name in known:
                fields[name] = value
            elif name in neutral:
                if not any(value == other and _is_flag(value) == _is_flag(other) for other in neutral[name]):
                    raise _unsupported(path + name, neutral[name])
            elif self._lenient:
                self.ignored.append(path + name)
            else:
                raise _unknown(name, path, {*known, *neutral})
        try:
            return msgspec.convert(fields, shape)
        except msgspec.ValidationError as error:
            raise _wrong_type(error, path) from None


def decode_object(body: bytes) -> dict[str, Any]:
    """The JSON object in a request's body. Raises ApiError with the position of what is malformed."""
    try:
        given = msgspec.json.decode(body)
    except msgspec.DecodeError as error:
        raise ApiError(400, f"The request body is not valid JSON: {error}.", code="invalid_json") from None
    except (UnicodeDecodeError, RecursionError) as error:
        raise ApiError(400, f"The request body is not valid JSON: {error}.", code="invalid_json") from None
    if not isinstance(given, dict):
        raise ApiError(400, "The request body must be a JSON object.", code="invalid_json")
    return given


def read_chat(given: dict[str, Any], reader: FieldReader) -> tuple[ChatRequest, list[dict[str, Any]]]:
    """A chat request, and its messages as chat templates want them: role, content as one string, perhaps name."""
    request = reader.read(given, ChatRequest, NEUTRAL_CHAT)
    check_parameters(request)
    if not request.messages:
        raise invalid("messages", "messages must hold at least one message.")
    messages = [_read_message(message, reader, f"messages[{n}]") for n, message in enumerate(request.messages)]
    if request.continue_final_message and request.add_generation_prompt and "add_generation_prompt" in given:
        raise invalid(
            "continue_final_message",
            "continue_final_message and add_generation_prompt exclude each other; set one only.",
        )
    if request.continue_final_message and messages[-1]["role"] != "assistant":
        raise invalid("continue_final_message", "continue_final_message needs a last message whose role is assistant.")
    return request, messages


def read_messages(given: list[dict[str, Any]], reader: FieldReader) -> list[dict[str, Any]]:
    """Messages as chat templates want them."""
    return [_read_message(message, reader, f"messages[{n}]") for n, message in enumerate(given)]


def read_completion(given: dict[str, Any], reader: FieldReader) -> tuple[CompletionRequest, str | list[int]]:
    """A completion request, and its prompt as text or as token ids."""
    request = reader.read(given, CompletionRequest, NEUTRAL_COMPLETION)
    check_parameters(request)
    prompt = request.prompt
    if isinstance(prompt, list) and prompt and isinstance(prompt[0], str | list):
        if len(prompt) > 1:
            raise invalid("prompt", f"prompt holds {len(prompt)} prompts; send one request for each.")
        prompt = prompt[0]
    if isinstance(prompt, str):
        return request, prompt
    try:
        return request, msgspec.convert(prompt, list[int])
    except msgspec.ValidationError:
        raise invalid("prompt", "prompt must be a string, a list with one string, or a list of token ids.") from None


def read_stream_options(request: GenerationRequest, reader: FieldReader) -> StreamOptions:
    """The stream options; they need stream."""
    if request.stream_options is None:
        return StreamOptions()
    if not request.stream:
        raise invalid("stream_options", "stream_options may only be set when stream is true.")
    options = reader.read(request.stream_options, StreamOptions, {}, "stream_options.")
    if options.resumable and request.n > 1:
        raise invalid("stream_options.resumable", f"With n {request.n}, resumable is not possible; ask for one choice.")
    return options


def is_resumable(options: StreamOptions, accept: Iterable[str]) -> bool:
    """Whether a client knows event ids: it says so, or it accepts text/event-stream by name, as EventSource does.

    Args:
        options: of its request.
        accept: the values of its Accept headers.
    """
    if options.resumable is not None:
        return options.resumable
    ranges = ",".join(accept).split(",")
    return any(media_range.partition(";")[0].strip().lower() == "text/event-stream" for media_range in ranges)


def read_last_event_id(given: str) -> int:
    """The number in a Last-Event-ID header."""
    if not (given.isascii() and given.isdigit() and len(given) <= _MAX_DIGITS):
        raise ApiError(
            400,
            f"Last-Event-ID must be the id of an event of the stream, a number, not {given[:64]!r}.",
            code="invalid_last_event_id",
        )
    return int(given)


def stop_strings(request: GenerationRequest) -> list[str]:
    """The stop strings as a list."""
    stops = [request.stop] if isinstance(request.stop, str) else request.stop
    if len(stops) > MAX_STOP_STRINGS:
        raise invalid("stop", f"stop holds {len(stops)} strings; at most {MAX_STOP_STRINGS} are possible.")
    for stop in stops:
        if not 1 <= len(stop.encode(errors="surrogatepass")) <= MAX_STOP_BYTES:
            raise invalid("stop", f"Each stop string must have 1 to {MAX_STOP_BYTES} bytes.")
    return stops


def output_limit(request: ChatRequest) -> int | None:
    """How many tokens a chat request wants at most; None leaves it to the model's length."""
    asked = {request.max_tokens, request.max_completion_tokens} - {None}
    if len(asked) > 1:
        raise invalid("max_tokens", "max_tokens and max_completion_tokens differ; send max_completion_tokens only.")
    return next(iter(asked), None)


def _read_message(given: dict[str, Any], reader: FieldReader, path: str) -> dict[str, Any]:
    message = reader.read(given, Message, NEUTRAL_MESSAGE, path + ".")
    match message.role:
        case "system" | "user" | "assistant" | "developer":
            pass
        case "tool" | "function":
            raise ApiError(
                400,
                f"{path}.role is {message.role!r}: tools are not supported yet.",
                param=f"{path}.role",
                code="unsupported_parameter",
            )
        case role:
            raise invalid(f"{path}.role", f"{path}.role must be system, developer, user or assistant, not {role!r}.")
    read: dict[str, Any] = {"role": message.role, "content": _text(message, reader, path)}
    return read if message.name is None else read | {"name": message.name}


def _text(message: Message, reader: FieldReader, path: str) -> str:
    """A message's content as one string; the texts of several parts are joined by line breaks."""
    if message.content is None:
        raise invalid(f"{path}.content", f"{path}.content is missing.")
    if isinstance(message.content, str):
        return message.content
    texts = []
    for n, given in enumerate(message.content):
        where = f"{path}.content[{n}]"
        kind = given.get("type")
        if kind != "text":
            raise invalid(f"{where}.type", f"{where}.type must be 'text', not {kind!r}: this model reads text only.")
        texts.append(reader.read(given, Part, {}, where + ".").text)
    return "\n".join(texts)


def _is_flag(value: Any) -> bool:
    """Whether this is true or false, which Python takes for 1 and 0."""
    return isinstance(value, bool)


def _unsupported(path: str, neutral: tuple[Any, ...]) -> ApiError:
    remedy = f"leave it out or set it to {msgspec.json.encode(neutral[0]).decode()}" if neutral else "leave it out"
    return ApiError(
        400, f"{path} is not supported yet with this value; {remedy}.", param=path, code="unsupported_parameter"
    )


def _unknown(name: str, path: str, known: set[str]) -> ApiError:
    nearest = difflib.get_close_matches(name, known, n=1)
    hint = f" Did you mean {path + nearest[0]}?" if nearest else ""
    return ApiError(400, f"Unknown field {path + name}.{hint}", param=path + name, code="unknown_parameter")


def _wrong_type(error: msgspec.ValidationError, path: str) -> ApiError:
    """What msgspec says ends with where it was, as in "Expected `int`, got `str` - at `$.max_tokens`"."""
    missing = re.search(r"missing required field `(\w+)`", str(error))
    if missing:
        param = path + missing[1]
        return ApiError(400, f"{param} is missing.", param=param, code="missing_parameter")
    reason, _, where = str(error).partition(" - at `$.")
    param = path + where.rstrip("`").replace("[...]", "")
    return ApiError(400, f"{param} has a wrong type: {reason}.", param=param, code="invalid_type")
