"""One conversation with tools in the words of the three protocols, and what each reader makes of a request."""

from __future__ import annotations

import dataclasses
import functools
import json
from typing import TYPE_CHECKING, Any

from rbee.server.protocols.anthropic.reader import MessagesReader
from rbee.server.protocols.generating import Arrival
from rbee.server.protocols.openai.reader import RequestReader
from rbee.server.protocols.responses.reader import ResponsesReader
from rbee.server.text.chat_template import ChatTemplate
from tests.server.protocols.parameters_parts import MODEL, ready

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rbee.server.streams.generation import Generation
    from rbee.server.text.served_model import ServedModel

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
ARGUMENTS = '{"city":"Zürich"}'
OK = {"type": "object"}

# Writes all that it gets, so that a prompt shows what a request was read as.
SOURCE = """\
{%- for tool in tools or [] -%}{{- tool.function | tojson + '\n' -}}{%- endfor -%}
{%- for m in messages -%}
    {{- m.role ~ ('(' ~ m.name ~ ')' if m.name else '') ~ ':' -}}
    {{- ' <' ~ m.reasoning_content ~ '>' if m.reasoning_content else '' -}}
    {{- '' if m.content is none else ' ' ~ m.content -}}
    {%- for call in m.tool_calls or [] -%}
        {{- ' ' ~ call.id ~ '=' ~ call.function.name ~ '(' ~ call.function.arguments | tojson ~ ')' -}}
    {%- endfor -%}
    {{- ' for ' ~ m.tool_call_id if m.tool_call_id else '' -}}
    {{- '\n' -}}
{%- endfor -%}
{{- 'thinking ' ~ enable_thinking if enable_thinking is defined else '' -}}"""

ASKED = "user: Zürich?\n"
CALLED = 'assistant: <Hm.> Well. a=weather({"city": "Zürich"}) b=time({})\n'
ANSWERED = "tool(weather): 20\n21 for a\ntool(time):  for b\n"
SHOWN = ASKED + CALLED + ANSWERED + "user: Thanks.\n"


def tool_of(protocol: str, name: str, schema: Any = SCHEMA, **more: Any) -> dict[str, Any]:
    """A tool in the words of a protocol."""
    if protocol == "messages":
        return {"name": name, "input_schema": schema, **more}
    function = {"name": name, "parameters": schema, **more}
    return {"type": "function"} | (function if protocol == "responses" else {"function": function})


def choice_of(protocol: str, name: str) -> dict[str, Any]:
    """A tool_choice that names a tool."""
    if protocol == "messages":
        return {"type": "tool", "name": name}
    return {"type": "function"} | ({"name": name} if protocol == "responses" else {"function": {"name": name}})


def _call(protocol: str, call_id: str, name: str, arguments: str) -> dict[str, Any]:
    match protocol:
        case "chat":
            return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}
        case "messages":
            return {"type": "tool_use", "id": call_id, "name": name, "input": json.loads(arguments or "{}")}
    return {"type": "function_call", "call_id": call_id, "name": name, "arguments": arguments}


def conversation(protocol: str) -> list[dict[str, Any]]:
    """A question, thoughts with a text and two calls, their results, and the user's next words."""
    ask, thanks = ({"role": "user", "content": text} for text in ("Zürich?", "Thanks."))
    calls = [_call(protocol, "a", "weather", ARGUMENTS), _call(protocol, "b", "time", "")]
    match protocol:
        case "chat":
            parts = [{"type": "text", "text": "20"}, {"type": "text", "text": "21"}]
            turn = {"role": "assistant", "content": "Well.", "reasoning_content": "Hm.", "tool_calls": calls}
            results = [{"role": "tool", "tool_call_id": "a", "content": parts}]
            return [ask, turn, *results, {"role": "tool", "tool_call_id": "b", "content": ""}, thanks]
        case "messages":
            thinking = {"type": "thinking", "thinking": "Hm.", "signature": "x"}
            blocks = [thinking, {"type": "text", "text": "Well."}, *calls]
            texts = [{"type": "text", "text": "20"}, {"type": "text", "text": "21"}]
            results = [{"type": "tool_result", "tool_use_id": "a", "content": texts}]
            results += [{"type": "tool_result", "tool_use_id": "b"}, {"type": "text", "text": "Thanks."}]
            return [ask, {"role": "assistant", "content": blocks}, {"role": "user", "content": results}]
    reasoning: dict[str, Any] = {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "?"}]}
    reasoning["content"] = [{"type": "reasoning_text", "text": "Hm."}]
    message = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Well."}]}
    texts = [{"type": "input_text", "text": "20"}, {"type": "input_text", "text": "21"}]
    outputs = [{"type": "function_call_output", "call_id": "a", "output": texts}]
    outputs += [{"type": "function_call_output", "call_id": "b", "output": ""}]
    return [ask, reasoning, message, *calls, *outputs, thanks]


@functools.cache
def model_with(source: str) -> ServedModel:
    """The synthetic model with this template."""
    return dataclasses.replace(MODEL, chat_template=ChatTemplate(source, {}))


def ask(protocol: str, messages: Sequence[dict[str, Any]] | None = None, *, source: str = SOURCE, **fields: Any) -> Any:
    """What a request asks of a model with this template and 4000 tokens."""
    model = model_with(source)
    given = conversation(protocol) if messages is None else messages
    engine = ready(max_model_len=4000)
    limits: dict[str, Any] = {"num_rings": 64, "ring_capacity": 1024, "lenient": False}
    if protocol == "chat":
        body = json.dumps({"messages": given} | fields).encode()
        return RequestReader(model, **limits).read_chat(body, [], engine, 0)
    if protocol == "messages":
        body = json.dumps({"messages": given, "max_tokens": 5} | fields).encode()
        return MessagesReader(model, **limits).read(body, Arrival("r", [], 0, engine))
    body = json.dumps({"input": given} | fields).encode()
    return ResponsesReader(model, **limits).read(body, Arrival("r", [], 0, engine))


def read(protocol: str, messages: Sequence[dict[str, Any]] | None = None, **fields: Any) -> tuple[Generation, str]:
    """What a request is read as, and its Warning header; see `ask`."""
    asked = ask(protocol, messages, **fields)
    return asked.generation, dict(asked.dialect.answer_headers).get(b"warning", b"").decode()


def prompt_of(protocol: str, messages: Sequence[dict[str, Any]] | None = None, **fields: Any) -> str:
    """The prompt that a request makes."""
    return MODEL.codec.decode(read(protocol, messages, **fields)[0].prompt)
