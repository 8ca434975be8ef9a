"""From the bytes of a Responses request to a generation and its dialect.

Owns the order of the checks. Runs in the event loop or in a thread. Changes nothing: a refused request costs the engine
nothing.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from rbee.server.errors import Refusal, invalid
from rbee.server.protocols.fields import FieldReader, decode_object
from rbee.server.protocols.generating import Asked
from rbee.server.protocols.generation_reader import GenerationReader
from rbee.server.protocols.output_form import of_text_format
from rbee.server.protocols.parameters import check_parameters
from rbee.server.protocols.reasoning import given_variables, reasoning_variables
from rbee.server.protocols.responses.conversation import read_input
from rbee.server.protocols.responses.dialect import ResponsesDialect
from rbee.server.protocols.responses.schemas import (
    ADVISORY,
    ADVISORY_REASONING,
    ADVISORY_STREAM_OPTIONS,
    ADVISORY_TEXT,
    DISPENSABLE,
    INCLUDABLE,
    NEUTRAL,
    NEUTRAL_REASONING,
    STATEFUL,
    Reasoning,
    ResponsesRequest,
    StreamOptions,
    TextConfig,
)
from rbee.server.protocols.responses.tools import read_tool_use

if TYPE_CHECKING:
    from rbee.messages import Ready
    from rbee.server.protocols.generating import Arrival
    from rbee.server.protocols.generation_reader import ChatPrompt
    from rbee.server.protocols.output_form import Form
    from rbee.server.text.chat_template import ChatTemplate
    from rbee.server.text.served_model import ServedModel
    from rbee.server.text.tool_use import ToolUse


class ResponsesReader:
    """Reads the requests for one model. `read` raises Refusal for what cannot be done, naming the field."""

    def __init__(self, model: ServedModel, *, num_rings: int, ring_capacity: int, lenient: bool) -> None:
        self._reader = GenerationReader(model, num_rings=num_rings, ring_capacity=ring_capacity)
        self._model = model
        self._lenient = lenient

    def read(self, body: bytes, arrival: Arrival) -> Asked:
        """What POST /v1/responses asks for."""
        reader = FieldReader(lenient=self._lenient)
        given = self._reader.with_defaults(_stateless(decode_object(body), reader))
        request = reader.read(given, ResponsesRequest, NEUTRAL, advisory=ADVISORY, dispensable=DISPENSABLE)
        check_parameters(request)
        form = _read_form(request, reader)
        _check_options(request, reader)
        self._reader.check_model(request.model)
        tool_use = read_tool_use(request, reader)
        prompt = self._prompt(request, tool_use, reader, arrival.engine)
        generation = self._reader.generation(
            request,
            prompt.token_ids,
            max_tokens=request.max_output_tokens,
            deadlines=arrival.deadlines,
            engine=arrival.engine,
            received_ns=arrival.received_ns,
            tool_use=tool_use,
            chat=prompt,
            form=form,
        )
        generation = dataclasses.replace(generation, keep_text=True)
        dialect = ResponsesDialect(
            self._model.name, generation, request, self._model.codec.token_bytes, ignored=reader.ignored
        )
        return Asked(generation, dialect, request.stream)

    def _prompt(self, request: ResponsesRequest, tool_use: ToolUse, reader: FieldReader, engine: Ready) -> ChatPrompt:
        template = self._reader.template_for(tool_use)
        messages = read_input(
            request.instructions,
            request.input,
            reader,
            shows_reasoning=template is not None and template.abilities.reasoning_field is not None,
        )
        variables = _reasoning_switches(request, template, reader) | given_variables(request.chat_template_kwargs)
        try:
            return self._reader.chat_prompt(messages, engine, "input", tool_use=tool_use, variables=variables)
        except Refusal as refusal:
            if refusal.param == "messages":  # the chat template's word
                refusal.param = "input"
            raise


def _reasoning_switches(
    request: ResponsesRequest, template: ChatTemplate | None, reader: FieldReader
) -> dict[str, Any]:
    """What of `reasoning` the chat template gets."""
    if request.reasoning is None:
        return {}
    reasoning = reader.read(request.reasoning, Reasoning, NEUTRAL_REASONING, "reasoning.", advisory=ADVISORY_REASONING)
    return reasoning_variables(template, reader.ignored, effort=reasoning.effort, effort_field="reasoning.effort")


def _stateless(given: dict[str, Any], reader: FieldReader) -> dict[str, Any]:
    """`given` without the fields that need a state, whose values must need none.

    `store` is followed whatever it says: nobody can ask for what was stored.
    """
    for name, (allowed, remedy) in STATEFUL.items():
        value = given.get(name)
        if value is not None and value not in allowed:
            message = f"{name} is not supported: this server stores no responses. Instead, {remedy}."
            raise invalid(name, message, code="unsupported_parameter")
    if given.get("store"):
        reader.ignored.append("store")
    return {name: value for name, value in given.items() if name not in STATEFUL and name != "store"}


def _read_form(request: ResponsesRequest, reader: FieldReader) -> Form | None:
    """What the answer must be; None: any text."""
    if request.text is None:
        return None
    text = reader.read(request.text, TextConfig, {}, "text.", advisory=ADVISORY_TEXT)
    return of_text_format(text.format, "text.format.", reader)


def _check_options(request: ResponsesRequest, reader: FieldReader) -> None:
    """Raise Refusal unless the answer can be as it is asked for."""
    if request.max_output_tokens is not None and request.max_output_tokens < 1:
        message = f"max_output_tokens must be at least 1, not {str(request.max_output_tokens)[:40]}."
        raise invalid("max_output_tokens", message)
    for number, name in enumerate(request.include):
        if name not in INCLUDABLE:
            param = f"include[{number}]"
            message = f"{param} is {name[:64]!r}, which is not supported yet; leave it out."
            raise invalid(param, message, code="unsupported_parameter")
    if request.stream_options is not None:
        if not request.stream:
            raise invalid("stream_options", "stream_options may only be set when stream is true.")
        path = "stream_options."
        reader.read(request.stream_options, StreamOptions, {}, path, advisory=ADVISORY_STREAM_OPTIONS)
