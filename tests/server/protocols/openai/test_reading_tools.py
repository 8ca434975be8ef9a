"""What only OpenAI's chat requests have of tools: former fields, roles, and the routes beside them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from rbee.server.errors import Refusal
from rbee.server.protocols.openai.tokenizing import TextReader
from tests.server.protocols.parameters_parts import MODEL
from tests.server.protocols.tools_parts import OK, SHOWN, SOURCE, conversation, model_with, prompt_of, read, tool_of

ASK = {"role": "user", "content": "Hi"}
CALL: dict[str, Any] = {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}
TURN = {"role": "assistant", "tool_calls": [CALL]}


def refusal(messages=(ASK,), **fields):
    """The error for these."""
    with pytest.raises(Refusal) as caught:
        read("chat", list(messages), **fields)
    return caught.value


@pytest.mark.parametrize(
    ("messages", "fields", "param", "remedy"),
    [
        ([ASK], {"functions": [{"name": "f"}]}, "functions", "send each function in tools"),
        ([ASK], {"function_call": {"name": "f"}}, "function_call", "send tool_choice"),
        (
            [ASK, {"role": "assistant", "function_call": {"name": "f", "arguments": "{}"}}],
            {},
            "messages[1].function_call",
            "send the call in tool_calls",
        ),
        (
            [{"role": "function", "name": "f", "content": "x"}],
            {},
            "messages[0].role",
            "send the result with the role tool",
        ),
    ],
)
def test_former_fields_have_a_remedy(messages, fields, param, remedy):
    """They are refused with what to send instead; those that ask for nothing are taken."""
    error = refusal(messages, **fields)
    assert (error.param, error.code) == (param, "unsupported_parameter")
    assert remedy in error.message
    assert read("chat", [ASK], functions=[], function_call="auto")


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"role": "user", "content": "x", "tool_calls": [CALL]}, "messages[0].tool_calls"),
        ({"role": "assistant", "content": "x", "tool_call_id": "a"}, "messages[0].tool_call_id"),
        ({"role": "tool", "content": "x"}, "messages[0].tool_call_id"),
        ({"role": "tool", "content": "x", "tool_call_id": "a"}, "messages[0].tool_call_id"),
        ({"role": "assistant", "tool_calls": [{"id": "a"}]}, "messages[0].tool_calls[0].function"),
        ({"role": "assistant", "tool_calls": [CALL | {"type": "custom"}]}, "messages[0].tool_calls[0].type"),
        ({"role": "assistant", "tool_calls": [CALL | {"function": {"name": "f"}}]},
         "messages[0].tool_calls[0].function.arguments"),
        ({"role": "assistant", "tool_calls": [CALL | {"function": {"name": "f", "arguments": {}}}]},
         "messages[0].tool_calls[0].function.arguments"),
        ({"role": "assistant", "tool_calls": [CALL | {"extra": 1}]}, "messages[0].tool_calls[0].extra"),
    ],
)  # fmt: skip
def test_calls_and_results_stand_where_they_belong(message, param):
    """A refusal names the place."""
    error = refusal([message])
    assert error.param == param
    assert param in error.message


@pytest.mark.parametrize(
    ("choice", "param"),
    [
        ({"type": "function"}, "tool_choice.function"),
        ({"type": "function", "function": {}}, "tool_choice.function.name"),
        ({"type": "allowed_tools"}, "tool_choice.allowed_tools"),
        ({"type": "allowed_tools", "allowed_tools": {"mode": "auto"}}, "tool_choice.allowed_tools.tools"),
        ({"type": "allowed_tools", "allowed_tools": {"mode": "all", "tools": []}}, "tool_choice.allowed_tools.mode"),
        ({"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [{"type": "mcp"}]}},
         "tool_choice.allowed_tools.tools[0].type"),
        ({"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [tool_of("chat", "f", OK)]}},
         "tool_choice.allowed_tools.tools[0].function.parameters"),
        ({"name": "f"}, "tool_choice.name"),
    ],
)  # fmt: skip
def test_a_choice_is_whole(choice, param):
    """A refusal names what is missing, or not known."""
    assert refusal(tools=[tool_of("chat", "f")], tool_choice=choice).param == param


def test_the_name_of_a_result_is_its_calls():
    """Unless the client says another."""
    result = {"role": "tool", "tool_call_id": "a", "content": "x"}
    assert prompt_of("chat", [ASK, TURN, result]) == "user: Hi\nassistant: a=f({})\ntool(f): x for a\n"
    assert prompt_of("chat", [ASK, TURN, result | {"name": "g"}]).endswith("tool(g): x for a\n")


def test_what_clients_add_to_calls_is_listed():
    """The client's own parsing, and the place in a stream."""
    function = CALL["function"] | {"parsed_arguments": {}}
    turn = {"role": "assistant", "tool_calls": [CALL | {"index": 0, "function": function}]}
    calls = "messages[].tool_calls[]"
    assert read("chat", [ASK, turn])[1] == f'299 - "ignored: {calls}.index, {calls}.function.parsed_arguments"'


@pytest.mark.parametrize(
    ("fields", "shown"),
    [
        ({"reasoning": "R"}, "<R> x"),
        ({"reasoning": "R", "reasoning_content": "C"}, "<C> x"),
        ({"reasoning": None, "reasoning_content": ""}, "x"),
        ({"reasoning": {"effort": "low"}}, "x"),
    ],
)
def test_reasoning_has_two_names(fields, shown):
    """The first that is a text counts."""
    turn = {"role": "assistant", "content": "x"} | fields
    assert prompt_of("chat", [ASK, turn, ASK]) == f"user: Hi\nassistant: {shown}\nuser: Hi\n"


def test_a_message_with_calls_is_not_continued():
    """The model would have to go on inside of a call."""
    error = refusal([ASK, TURN], continue_final_message=True, add_generation_prompt=False)
    assert error.param == "continue_final_message"


def test_variables_are_not_too_deep():
    """They go to the chat template as schemas do."""
    value: list[object] = []
    for _ in range(100):
        value = [value]
    assert refusal(chat_template_kwargs={"x": value}).param == "chat_template_kwargs"


def test_tokenize_counts_tools():
    """And calls, results and reasoning."""
    model = model_with(SOURCE)
    reader = TextReader(model, num_rings=64, ring_capacity=1024, lenient=False)

    def text(**fields):
        return model.codec.decode(
            reader.tokenize(json.dumps({"messages": conversation("chat")} | fields).encode(), 0).token_ids
        )

    assert text() == SHOWN
    function = '{"name": "f", "parameters": {"type": "object"}}'
    assert text(tools=[tool_of("chat", "f", OK)]) == f"{function}\n{SHOWN}"


class TestSwitches:
    """Reasoning is turned on and off by the variable that the template has for that."""

    @pytest.mark.parametrize(
        ("source", "fields", "shown", "warning"),
        [
            ("{{ enable_thinking }}", {"enable_thinking": False}, "False", ""),
            ("{{ thinking }}", {"enable_thinking": True}, "True", ""),
            ("{{ thinking }}", {"reasoning_effort": "none"}, "False", ""),
            ("{{ thinking }}", {"reasoning_effort": "none", "enable_thinking": True}, "True", ""),
            ("{{ thinking }}", {"reasoning_effort": "low"}, "", '299 - "ignored: reasoning_effort"'),
            ("{{ thinking }}{{ reasoning_effort }}", {"reasoning_effort": "none"}, "none", ""),
            ("{% if tools %}{{ enable_thinking }}{% endif %}", {"enable_thinking": True}, "", ""),
            ("x", {"reasoning_effort": "none"}, "x", '299 - "ignored: reasoning_effort"'),
        ],
    )
    def test_what_the_template_gets(self, source, fields, shown, warning):
        """And what is listed as not followed."""
        generation, header = read("chat", [ASK], source=source + ".", **fields)
        assert MODEL.codec.decode(generation.prompt) == shown + "."
        assert header == warning
