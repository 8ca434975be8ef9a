"""From the bytes of an Anthropic request to a generation and its dialect, or to a number of tokens.

Owns the order of the checks. Runs in the event loop or in a thread. Changes nothing: a refused request costs the engine
nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from rbee.server.errors import invalid
from rbee.server.protocols.anthropic.conversation import continues_last, read_conversation
from rbee.server.protocols.anthropic.dialect import MessagesDialect
from rbee.server.protocols.anthropic.schemas import (
    ADVISORY,
    ADVISORY_OUTPUT_CONFIG,
    DISPENSABLE,
    NEUTRAL,
    CountRequest,
    MessagesRequest,
    OutputConfig,
)
from rbee.server.protocols.anthropic.tools import (
    read_thinking,
    read_tool_use,
    thinking_budget,
    thinking_variables,
)
from rbee.server.protocols.fields import FieldReader, decode_object
from rbee.server.protocols.generating import Asked
from rbee.server.protocols.generation_reader import GenerationReader
from rbee.server.protocols.output_form import of_text_format, only_form
from rbee.server.protocols.parameters import MAX_STOP_BYTES, MAX_STOP_STRINGS, check_parameters
from rbee.server.protocols.reasoning import given_variables
from rbee.server.text.tokenizer import TooManyTokensError

if TYPE_CHECKING:
    from rbee.server.errors import Refusal
    from rbee.server.protocols.anthropic.schemas import Thinking
    from rbee.server.protocols.generating import Arrival
    from rbee.server.protocols.output_form import Form
    from rbee.server.text.served_model import ServedModel
    from rbee.server.text.tool_use import ToolUse

MAX_COUNTED = 65_536  # tokens of a conversation, for a model that takes no longer ones


class MessagesReader:
    """Reads the requests for one model. All methods raise Refusal for what cannot be done, naming the field."""

    def __init__(self, model: ServedModel, *, num_rings: int, ring_capacity: int, lenient: bool) -> None:
        self._reader = GenerationReader(model, num_rings=num_rings, ring_capacity=ring_capacity)
        self._model = model
        self._lenient = lenient

    def read(self, body: bytes, arrival: Arrival) -> Asked:
        """What POST /v1/messages asks for.

        An answer never takes more than what the prompt leaves of the model's length, however large max_tokens is:
        clients of Anthropic's models send the largest value that these know.
        """
        reader = FieldReader(lenient=self._lenient)
        given = self._reader.with_defaults(decode_object(body))
        request = reader.read(given, MessagesRequest, NEUTRAL, advisory=ADVISORY, dispensable=DISPENSABLE)
        check_parameters(request)
        _check_stop_sequences(request.stop_sequences)
        self._reader.check_model(request.model)
        tool_use = read_tool_use(request, reader)
        thinking = read_thinking(request, reader)
        messages, options = self._conversation(request, tool_use, thinking, reader)
        form = _read_form(request, reader)
        if form is not None and options["continue_final_message"]:
            raise _prefilled(form, f"messages[{len(request.messages) - 1}]")
        prompt = self._reader.chat_prompt(messages, arrival.engine, **options)
        room = max(arrival.engine.max_model_len - len(prompt.token_ids), 1)
        generation = self._reader.generation(
            msgspec.structs.replace(request, stop=request.stop_sequences),
            prompt.token_ids,
            max_tokens=min(request.max_tokens, room),
            deadlines=arrival.deadlines,
            engine=arrival.engine,
            received_ns=arrival.received_ns,
            tool_use=tool_use,
            chat=prompt,
            form=form,
            budget=self._reader.budget(thinking_budget(thinking), prompt, reader.ignored),
        )
        dialect = MessagesDialect(
            self._model.name,
            generation,
            request_id=arrival.request_id,
            ignored=reader.ignored,
            fills_context=request.max_tokens > room,
        )
        return Asked(generation, dialect, request.stream)

    def count(self, body: bytes, max_model_len: int) -> int:
        """How many tokens a conversation has, which may be longer than the model takes (0: not known yet)."""
        limit = max(MAX_COUNTED, max_model_len)
        reader = FieldReader(lenient=self._lenient)
        given = decode_object(body)
        request = reader.read(given, CountRequest, NEUTRAL, advisory=ADVISORY, dispensable=DISPENSABLE)
        self._reader.check_model(request.model)
        tool_use, thinking = read_tool_use(request, reader), read_thinking(request, reader)
        messages, options = self._conversation(request, tool_use, thinking, reader)
        try:
            pieces = self._reader.chat_pieces(messages, limit, **options)
            return len(self._model.codec.encode_pieces(pieces, limit=limit))
        except TooManyTokensError as error:
            raise invalid(
                "messages",
                f"messages have at least {error.found} tokens; at most {limit} are counted in one request. Send it in "
                "parts.",
                code="too_many_tokens",
            ) from None

    def _conversation(
        self,
        request: MessagesRequest | CountRequest,
        tool_use: ToolUse,
        thinking: Thinking | None,
        reader: FieldReader,
    ) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """The messages, and the options of `GenerationReader.chat_pieces`."""
        template = self._reader.template_for(tool_use)
        messages = read_conversation(
            request.system,
            request.messages,
            reader,
            shows_reasoning=template is not None and template.abilities.reasoning_field is not None,
        )
        options = {
            "tool_use": tool_use,
            "continue_final_message": continues_last(messages),
            "variables": thinking_variables(thinking, template, reader) | given_variables(request.chat_template_kwargs),
        }
        return messages, options


def _read_form(request: MessagesRequest, reader: FieldReader) -> Form | None:
    """What the answer must be; None: any text."""
    config = reader.read(
        request.output_config or {}, OutputConfig, {}, "output_config.", advisory=ADVISORY_OUTPUT_CONFIG
    )
    return only_form(
        [
            of_text_format(config.format, "output_config.format.", reader),
            of_text_format(request.output_format, "output_format.", reader),
        ]
    )


def _prefilled(form: Form, param: str) -> Refusal:
    """Of a form beside a prefill, as in Anthropic's API: what is said to have it would have to go on with that."""
    return invalid(
        param,
        f"{param} is the assistant's, so that the answer would go on with it, but {form.param} says what the answer is "
        "from its beginning. Leave the prefill out.",
    )


def _check_stop_sequences(stops: list[str]) -> None:
    if len(stops) > MAX_STOP_STRINGS:
        message = f"stop_sequences holds {len(stops)} strings; at most {MAX_STOP_STRINGS} are possible."
        raise invalid("stop_sequences", message)
    for stop in stops:
        if not 1 <= len(stop.encode(errors="surrogatepass")) <= MAX_STOP_BYTES:
            raise invalid("stop_sequences", f"Each of stop_sequences must have 1 to {MAX_STOP_BYTES} bytes.")
