"""What only Anthropic's requests have of tools and thinking."""

from __future__ import annotations

import json

import pytest

from rbee.server.errors import Refusal
from rbee.server.protocols.anthropic.reader import MessagesReader
from tests.server.protocols.parameters_parts import MODEL
from tests.server.protocols.tools_parts import OK, SHOWN, SOURCE, conversation, model_with, prompt_of, read, tool_of

ASK = {"role": "user", "content": "Hi"}
USE = {"type": "tool_use", "id": "a", "name": "f", "input": {"x": [1]}}
RESULT = {"type": "tool_result", "tool_use_id": "a", "content": "no"}
TURN = {"role": "assistant", "content": [USE]}


def refusal(*messages, **fields):
    """The error for these."""
    with pytest.raises(Refusal) as caught:
        read("messages", [*messages] or [ASK], **fields)
    return caught.value


def test_a_failure_is_said():
    """In front of what the tool wrote."""
    shown = prompt_of("messages", [ASK, TURN, {"role": "user", "content": [RESULT | {"is_error": True}]}])
    assert shown == 'user: Hi\nassistant: a=f({"x": [1]})\ntool(f): Error: no for a\n'


def test_turns_in_a_row_of_the_assistant_are_one():
    """With their texts, thoughts and calls."""
    turns = [
        {"role": "assistant", "content": [{"type": "thinking", "thinking": thought}, {"type": "text", "text": text}]}
        for thought, text in (("A", "a"), ("B", "b"))
    ]
    assert prompt_of("messages", [ASK, *turns, TURN]) == 'user: Hi\nassistant: <A\nB> a\nb a=f({"x": [1]})\n'


def test_a_call_is_not_continued():
    """An assistant's last turn is a prefill only if it calls nothing."""
    assert prompt_of("messages", [ASK, {"role": "assistant", "content": "x"}]) == "user: Hi\nassistant: x"
    assert prompt_of("messages", [ASK, TURN]).endswith(")\n")


def test_redacted_thinking_is_left_out():
    """Nobody but Anthropic can read it; it is listed."""
    turn = {"role": "assistant", "content": [{"type": "redacted_thinking", "data": "x"}, {"type": "text", "text": "y"}]}
    generation, warning = read("messages", [ASK, turn, ASK])
    assert MODEL.codec.decode(generation.prompt) == "user: Hi\nassistant: y\nuser: Hi\n"
    assert warning == '299 - "ignored: messages[].content[].data"'


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"role": "user", "content": [USE]}, "messages[0].content[0].type"),
        ({"role": "assistant", "content": [RESULT]}, "messages[0].content[0].type"),
        ({"role": "user", "content": [{"type": "thinking", "thinking": "x"}]}, "messages[0].content[0].type"),
        ({"role": "user", "content": [RESULT]}, "messages[0].content[0].tool_use_id"),
        ({"role": "assistant", "content": [USE | {"input": "{}"}]}, "messages[0].content[0].input"),
        ({"role": "assistant", "content": [{**USE, "inputs": {}}]}, "messages[0].content[0].inputs"),
    ],
)
def test_blocks_stand_where_they_belong(message, param):
    """A refusal names the place."""
    error = refusal(message)
    assert error.param == param
    assert param in error.message


def test_what_a_result_may_hold():
    """Texts; other blocks are refused by name."""
    image = {"type": "image", "source": {}}
    error = refusal(ASK, TURN, {"role": "user", "content": [RESULT | {"content": [image]}]})
    assert error.param == "messages[2].content[0].content[0].type"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input_examples": [{}]}, "tools[0].input_examples"),
        ({"defer_loading": True}, "tools[0].defer_loading"),
        ({"parameters": {}}, "tools[0].parameters"),
    ],
)
def test_a_tool_that_is_known_and_unsupported(fields, param):
    """Is refused by name; what asks for nothing is taken, and marks for a cache are listed."""
    assert refusal(tools=[tool_of("messages", "f", OK, **fields)]).param == param
    plain = {"type": "custom", "defer_loading": False, "input_examples": [], "cache_control": {"type": "ephemeral"}}
    assert (
        read("messages", [ASK], tools=[tool_of("messages", "f", OK, **plain)])[1]
        == '299 - "ignored: tools[].cache_control"'
    )


@pytest.mark.parametrize(
    ("thinking", "shown", "warning"),
    [
        ({"type": "enabled", "budget_tokens": 1024}, "True", '299 - "ignored: thinking.budget_tokens"'),
        ({"type": "adaptive"}, "True", ""),
        ({"type": "disabled"}, "False", ""),
    ],
)
def test_thinking_is_a_switch(thinking, shown, warning):
    """Of templates that have one."""
    generation, header = read("messages", [ASK], thinking=thinking)
    assert MODEL.codec.decode(generation.prompt) == f"user: Hi\nthinking {shown}"
    assert header == warning


def test_thinking_without_a_switch():
    """Is listed, unless there is nothing to turn off."""
    assert read("messages", [ASK], source="x", thinking={"type": "enabled"})[1] == '299 - "ignored: thinking"'
    assert read("messages", [ASK], source="x", thinking={"type": "disabled"})[1] == ""


def test_counts_have_all_of_it():
    """Tools, calls, results and the switch."""
    model = model_with(SOURCE)
    reader = MessagesReader(model, num_rings=64, ring_capacity=1024, lenient=False)

    def count(**fields):
        return reader.count(json.dumps({"messages": conversation("messages")} | fields).encode(), 0)

    assert count() == len(SHOWN.encode())
    assert count(thinking={"type": "disabled"}) == len(f"{SHOWN}thinking False".encode())
    function = '{"name": "f", "parameters": {"type": "object"}}'
    tools = [tool_of("messages", "f", OK)]
    assert count(tools=tools) == len(f"{function}\n{SHOWN}".encode())
    assert count(tools=tools, tool_choice={"type": "none"}) == count()
