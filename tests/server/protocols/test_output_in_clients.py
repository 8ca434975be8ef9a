"""Reasoning and tool calls as the vendors' own clients add them up, wherever the model's tokens end.

Each gets the whole answer once, and then the bytes of a stream for each way to cut the same output: all say the same.
"""

from __future__ import annotations

import json
from typing import Any

import anthropic
import httpx2
import openai
import pytest

from rbee.messages import FinishReason
from tests.server.protocols.dialects_parts import (
    collected,
    make_messages_dialect,
    make_responses_dialect,
    streamed,
)
from tests.server.streams.streams_parts import make_dialect
from tests.server.streams.tagged_output import ANSWER, PLAN, cuts

pytestmark = pytest.mark.anyio

HI: Any = [{"role": "user", "content": "hi"}]
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}
TOKENS = cuts("".join(ANSWER))


class Wire:
    """What a client's requests are answered with.

    Attributes:
        http: the client's way there.
        stream: the body for those that ask for a stream.
        answer: the body for the others.
    """

    def __init__(self) -> None:
        self.stream, self.answer = b"", b""
        self.http: Any = httpx2.Client(transport=httpx2.MockTransport(self._respond))

    def put(self, dialect: Any, words: list[str]) -> None:
        """A stream whose tokens are these words, in a dialect."""
        self.stream = streamed(dialect, words, FinishReason.STOP).written()

    def put_whole(self, dialect: Any) -> None:
        """The whole answer."""
        self.answer = json.dumps(collected(dialect, ANSWER, FinishReason.STOP)).encode()

    def _respond(self, request: httpx2.Request) -> httpx2.Response:
        if json.loads(request.content).get("stream"):
            return httpx2.Response(200, content=self.stream, headers={"content-type": "text/event-stream"})
        return httpx2.Response(200, content=self.answer, headers={"content-type": "application/json"})


@pytest.fixture
def wire():
    """To whichever client."""
    made = Wire()
    with made.http:
        yield made


async def test_openai_chat(wire):
    """`chat.completions.stream`: its snapshot is the message, and it parses the arguments when a call is over."""
    function = {"name": "add", "parameters": SCHEMA, "strict": True}
    tools: Any = [{"type": "function", "function": function}]
    client = openai.OpenAI(base_url="http://test/v1", api_key="none", http_client=wire.http)
    dialect = make_dialect(chat=True, plan=PLAN)
    wire.put_whole(dialect)
    whole = client.chat.completions.create(model="m", messages=HI, tools=tools)
    for words in TOKENS:
        wire.put(dialect, words)
        with client.chat.completions.stream(model="m", messages=HI, tools=tools) as stream:
            events = list(stream)
            final = stream.get_final_completion()
        [choice] = final.choices
        assert (choice.finish_reason, whole.choices[0].finish_reason) == ("tool_calls", "tool_calls")
        said: Any = choice.message.to_dict()
        asked = whole.choices[0].message.to_dict()
        for call in said["tool_calls"]:
            del call["index"], call["function"]["parsed_arguments"]
        assert {name: said[name] for name in asked} == asked, words
        done = [event for event in events if event.type == "tool_calls.function.arguments.done"]
        assert [(event.index, event.name, event.arguments) for event in done] == [
            (0, "add", '{"a": 1}'),
            (1, "f", "{}"),
        ]
        assert done[0].parsed_arguments == {"a": 1}
        assert [event.content for event in events if event.type == "content.done"] == ["So: "]
    assert choice.message.to_dict()["reasoning_content"] == "Hm."
    assert choice.message.content == "So: !"


async def test_openai_responses(wire):
    """`responses.stream`: it checks each item's identity, and has them all at the end."""
    tools: Any = [{"type": "function", "name": "add", "parameters": SCHEMA, "strict": True}]
    client = openai.OpenAI(base_url="http://test/v1", api_key="none", http_client=wire.http)
    dialect = make_responses_dialect(plan=PLAN)
    wire.put_whole(dialect)
    whole = client.responses.create(model="m", input="hi", tools=tools)
    for words in TOKENS:
        wire.put(dialect, words)
        with client.responses.stream(model="m", input="hi", tools=tools) as stream:
            events = list(stream)
            final = stream.get_final_response()
        said: Any = final.to_dict()["output"]
        for item in said:
            item.pop("parsed_arguments", None)
            for part in item.get("content") or []:
                part.pop("parsed", None)
        assert said == whole.to_dict()["output"], words
        assert [item.type for item in final.output] == [
            "reasoning", "message", "function_call", "function_call", "message",
        ]  # fmt: skip
        snapshots = [event.snapshot for event in events if event.type == "response.function_call_arguments.delta"]
        assert [text for text in snapshots if text.endswith("}")] == ['{"a": 1}', "{}"]
    assert final.output_text == "So: !"
    assert final.output[2].parsed_arguments == {"a": 1}
    assert said[0]["content"] == [{"type": "reasoning_text", "text": "Hm."}]


async def test_anthropic_messages(wire):
    """`messages.stream`: its snapshot is the message, with the arguments as an object."""
    tools: Any = [{"name": "add", "input_schema": SCHEMA}]
    client = anthropic.Anthropic(base_url="http://test", api_key="none", http_client=wire.http)
    dialect = make_messages_dialect(plan=PLAN)
    wire.put_whole(dialect)
    whole = client.messages.create(model="m", max_tokens=9, messages=HI, tools=tools)
    for words in TOKENS:
        wire.put(dialect, words)
        with client.messages.stream(model="m", max_tokens=9, messages=HI, tools=tools) as stream:
            text = "".join(stream.text_stream)
            final = stream.get_final_message()
        said: Any = final.to_dict()["content"]
        for block in said:
            block.pop("parsed_output", None)
        assert said == whole.to_dict()["content"], words
        assert (text, final.stop_reason) == ("So: !", "tool_use")
    thinking, _, first, second, _ = final.content
    assert thinking.thinking == "Hm."
    assert (first.name, first.input, second.input) == ("add", {"a": 1}, {})
    assert len({first.id, second.id}) == 2
