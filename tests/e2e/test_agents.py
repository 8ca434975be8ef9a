"""Agents on the default model, through three protocols: it must call a tool, gets the result, and answers.

The model is too small to choose tools. What must hold is that its calls are valid, and that the loop closes.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import anthropic
import jsonschema_rs
import openai
import pytest

from rbee.config import DEFAULT_MODEL

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import Server

_ASKED = "What is the weather in Paris, and in Rome?"
_PARAMETERS: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 30}, "unit": {"enum": ["C", "F"]}},
    "required": ["city", "unit"],
    "additionalProperties": False,
}
_RESULT = "21 degrees and sunny"
_TOKENS = 200


@pytest.fixture
def of_openai(default_server: Server) -> Iterator[openai.OpenAI]:
    """OpenAI's client."""
    with openai.OpenAI(base_url=f"{default_server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
def of_anthropic(default_server: Server) -> Iterator[anthropic.Anthropic]:
    """Anthropic's client."""
    with anthropic.Anthropic(base_url=default_server.url, api_key="none", max_retries=0) as client:
        yield client


def check(name: str, arguments: Any) -> None:
    """A call is of the tool that there is, and valid under its schema."""
    assert name == "get_weather"
    jsonschema_rs.validate(_PARAMETERS, arguments)


def test_chat_completions(of_openai: openai.OpenAI) -> None:
    """Streamed, with the client's own accumulator."""
    messages: list[Any] = [{"role": "user", "content": _ASKED}]
    function: Any = {"name": "get_weather", "description": "The weather of a city", "parameters": _PARAMETERS}
    with of_openai.chat.completions.stream(
        model=DEFAULT_MODEL,
        messages=messages,
        tools=[{"type": "function", "function": function}],
        tool_choice="required",
        parallel_tool_calls=False,
        max_tokens=_TOKENS,
        temperature=0,
    ) as stream:
        choice = stream.get_final_completion().choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    assert choice.message.tool_calls is not None
    [call] = choice.message.tool_calls
    check(call.function.name, json.loads(call.function.arguments))
    messages += [
        {"role": "assistant", "tool_calls": [call.model_dump(exclude={"function": {"parsed_arguments"}})]},
        {"role": "tool", "tool_call_id": call.id, "content": _RESULT},
    ]
    last = of_openai.chat.completions.create(
        model=DEFAULT_MODEL,
        messages=messages,
        tools=[{"type": "function", "function": function}],
        tool_choice="none",
        max_tokens=_TOKENS,
        temperature=0,
    )
    assert last.choices[0].message.content
    assert not last.choices[0].message.tool_calls


def test_responses(of_openai: openai.OpenAI) -> None:
    """The items of the output go back as they are."""
    items: list[Any] = [{"role": "user", "content": _ASKED}]
    tools: list[Any] = [{"type": "function", "name": "get_weather", "parameters": _PARAMETERS, "strict": True}]
    with of_openai.responses.stream(
        model=DEFAULT_MODEL,
        input=items,
        tools=tools,
        tool_choice="required",
        parallel_tool_calls=False,
        max_output_tokens=_TOKENS,
        temperature=0,
    ) as stream:
        response = stream.get_final_response()
    assert response.status == "completed"
    [call] = response.output
    assert call.type == "function_call"
    check(call.name, json.loads(call.arguments))
    items += [
        call.model_dump(exclude_none=True),
        {"type": "function_call_output", "call_id": call.call_id, "output": _RESULT},
    ]
    last = of_openai.responses.create(
        model=DEFAULT_MODEL, input=items, tools=tools, tool_choice="none", max_output_tokens=_TOKENS, temperature=0
    )
    assert [item.type for item in last.output] == ["message"]
    assert last.output_text


def test_messages(of_anthropic: anthropic.Anthropic) -> None:
    """Several calls in one turn, each with its result."""
    messages: list[Any] = [{"role": "user", "content": _ASKED}]
    tools: list[Any] = [{"name": "get_weather", "input_schema": _PARAMETERS}]
    with of_anthropic.messages.stream(
        model=DEFAULT_MODEL,
        messages=messages,
        tools=tools,
        tool_choice={"type": "any"},
        max_tokens=_TOKENS,
        extra_body={"temperature": 0},
    ) as stream:
        message = stream.get_final_message()
    calls = [block for block in message.content if block.type == "tool_use"]
    assert calls
    if message.stop_reason == "max_tokens":  # the model goes on with calls, and the last one is cut
        calls = calls[:-1]
    for call in calls:
        check(call.name, call.input)
    messages += [
        {"role": "assistant", "content": [call.model_dump(exclude_none=True) for call in calls]},
        {
            "role": "user",
            "content": [{"type": "tool_result", "tool_use_id": call.id, "content": _RESULT} for call in calls],
        },
    ]
    last = of_anthropic.messages.create(
        model=DEFAULT_MODEL,
        messages=messages,
        tools=tools,
        tool_choice={"type": "none"},
        max_tokens=_TOKENS,
        extra_body={"temperature": 0},
    )
    assert [block.type for block in last.content] == ["text"]
