"""From the bytes of an OpenAI request to a generation and its dialect: where fields, model and limits meet.

Owns the order of the checks, and which prompt a request means. Runs in the event loop or in a thread. Changes nothing:
a refused request costs the engine nothing.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from rbee.server.errors import invalid
from rbee.server.protocols.fields import FieldReader, decode_object
from rbee.server.protocols.generation_reader import GenerationReader
from rbee.server.protocols.openai.dialect import ChatDialect, CompletionDialect
from rbee.server.protocols.openai.schemas import (
    NEUTRAL_CHAT,
    NEUTRAL_COMPLETION,
    NEUTRAL_MESSAGE,
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    Message,
    Part,
    StreamOptions,
    TokenizeRequest,
)
from rbee.server.protocols.parameters import check_parameters, check_token_ids
from rbee.server.text.token_text import Echo
from rbee.server.text.tokenizer import TooManyTokensError

if TYPE_CHECKING:
    from rbee.messages import Ready
    from rbee.server.protocols.openai.dialect import OpenAiDialect
    from rbee.server.protocols.parameters import GenerationRequest
    from rbee.server.streams.dialect import Dialect
    from rbee.server.streams.generation import Generation
    from rbee.server.text.served_model import ServedModel

MAX_TOKENIZED = 65_536  # tokens of a text, for a model that takes no longer ones: Python lists each of them
DEFAULT_COMPLETION_TOKENS = 16  # OpenAI's default for plain completions


class Asked(NamedTuple):
    """What a request asks for."""

    generation: Generation
    dialect: Dialect
    stream: bool  # whether the client wants the answer as it comes
    resumable: bool  # whether it wants to be able to resume the stream


class RequestReader:
    """Reads the requests for one model. All methods raise Refusal for what cannot be done, naming the field."""

    def __init__(self, model: ServedModel, *, num_rings: int, ring_capacity: int, lenient: bool) -> None:
        self._reader = GenerationReader(model, num_rings=num_rings, ring_capacity=ring_capacity)
        self._codec = model.codec
        self._lenient = lenient
        self.check_model = self._reader.check_model

    def read_chat(self, body: bytes, deadlines: list[str], engine: Ready, received_ns: int) -> Asked:
        """`deadlines` are the values of the X-Request-Deadline headers; for `received_ns` see `Generation`."""
        reader = FieldReader(lenient=self._lenient)
        request, messages = read_chat(self._reader.with_defaults(decode_object(body)), reader)
        self.check_model(request.model)
        prompt = self._reader.chat_prompt(
            messages,
            engine,
            add_generation_prompt=request.add_generation_prompt,
            continue_final_message=request.continue_final_message,
            variables=request.chat_template_kwargs,
        )
        generation = self._reader.generation(
            request,
            prompt,
            max_tokens=output_limit(request),
            deadlines=deadlines,
            engine=engine,
            received_ns=received_ns,
        )
        return self._asked(request, reader, ChatDialect, generation)

    def read_completion(self, body: bytes, deadlines: list[str], engine: Ready, received_ns: int) -> Asked:
        reader = FieldReader(lenient=self._lenient)
        request, given = read_completion(self._reader.with_defaults(decode_object(body)), reader)
        self.check_model(request.model)
        if isinstance(given, str):
            prompt = self._reader.text_prompt(given, engine)
        else:
            prompt = given
            check_token_ids(prompt, "prompt", engine.vocab_size)
        max_tokens = DEFAULT_COMPLETION_TOKENS if request.max_tokens is None else request.max_tokens
        echo = Echo.of(prompt, given if isinstance(given, str) else None, self._codec) if request.echo else None
        generation = self._reader.generation(
            request,
            prompt,
            max_tokens=max_tokens,
            deadlines=deadlines,
            engine=engine,
            received_ns=received_ns,
            echo=echo,
            show_output=max_tokens != 0,
        )
        return self._asked(request, reader, CompletionDialect, generation)

    def tokenize(self, body: bytes, max_model_len: int) -> list[int]:
        """The token ids of a prompt or of messages, which may be longer than the model takes (0: not known yet)."""
        limit = max(MAX_TOKENIZED, max_model_len)
        reader = FieldReader(lenient=self._lenient)
        asked = reader.read(decode_object(body), TokenizeRequest, {})
        self.check_model(asked.model)
        if (asked.prompt is None) == (asked.messages is None):
            raise invalid("prompt", "Send either prompt or messages.")
        add_special_tokens = asked.messages is None if asked.add_special_tokens is None else asked.add_special_tokens
        try:
            if asked.messages is None:
                pieces = [asked.prompt or ""]
            else:
                messages = read_messages(asked.messages, reader)
                pieces = self._reader.chat_pieces(messages, limit, add_generation_prompt=asked.add_generation_prompt)
            return self._codec.encode_pieces(pieces, add_special_tokens=add_special_tokens, limit=limit)
        except TooManyTokensError as error:
            raise invalid(
                "prompt" if asked.messages is None else "messages",
                f"The text has at least {error.found} tokens, and this route counts {limit} at most; send it in parts.",
                code="too_many_tokens",
            ) from None

    def detokenize(self, body: bytes) -> str:
        asked = FieldReader(lenient=self._lenient).read(decode_object(body), DetokenizeRequest, {})
        self.check_model(asked.model)
        check_token_ids(asked.tokens, "tokens", self._codec.size)
        return self._codec.decode(asked.tokens)

    def _asked(
        self, request: GenerationRequest, reader: FieldReader, dialect: type[OpenAiDialect], generation: Generation
    ) -> Asked:
        options = read_stream_options(request, reader)
        if request.timings or options.include_timing:
            generation = dataclasses.replace(generation, timings=True)
        answer = dialect(self._reader.model.name, generation, options, self._codec.token_bytes, reader.ignored)
        return Asked(generation, answer, request.stream, options.resumable)


def read_chat(given: dict[str, Any], reader: FieldReader) -> tuple[ChatRequest, list[dict[str, Any]]]:
    """A chat request, and its messages as chat templates want them: role, content as one string, perhaps name."""
    request = reader.read(given, ChatRequest, NEUTRAL_CHAT)
    check_parameters(request)
    if request.top_logprobs and not request.logprobs:
        raise invalid("top_logprobs", "top_logprobs may only be set when logprobs is true.")
    if not request.messages:
        raise invalid("messages", "messages must hold at least one message.")
    messages = read_messages(request.messages, reader)
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
            raise invalid(
                f"{path}.role",
                f"{path}.role is {message.role!r}: tools are not supported yet.",
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
