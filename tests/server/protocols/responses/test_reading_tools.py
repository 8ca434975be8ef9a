"""What only Responses requests have of tools and reasoning: items that make turns."""

from __future__ import annotations

import pytest

from rbee.server.errors import Refusal
from tests.server.protocols.dialects_parts import parse_events
from tests.server.protocols.parameters_parts import MODEL
from tests.server.protocols.tools_parts import OK, ask, prompt_of, read, tool_of

ASK = {"role": "user", "content": "Hi"}


def call(call_id):
    """A call."""
    return {"type": "function_call", "call_id": call_id, "name": "f", "arguments": "{}"}


def output(call_id):
    """Its result."""
    return {"type": "function_call_output", "call_id": call_id, "output": "x"}


def thought(text, member="content"):
    """An item of reasoning."""
    kind = {"content": "reasoning_text", "summary": "summary_text"}[member]
    return {"type": "reasoning", "summary": [], member: [{"type": kind, "text": text}]}


def said(text):
    """A message of the assistant."""
    return {"role": "assistant", "content": text}


def response(**fields):
    """What a stream says first."""
    [created, *_] = parse_events(ask("responses", [ASK], **fields).dialect.begin())
    return created.data["response"]


def refusal(*items, **fields):
    """The error for these."""
    with pytest.raises(Refusal) as caught:
        read("responses", [*items] or [ASK], **fields)
    return caught.value


@pytest.mark.parametrize(
    ("items", "shown"),
    [
        ([call("a"), call("b"), output("a"), output("b")],
         "assistant: a=f({}) b=f({})\ntool(f): x for a\ntool(f): x for b"),
        ([call("a"), output("a"), call("b"), output("b")],
         "assistant: a=f({})\ntool(f): x for a\nassistant: b=f({})\ntool(f): x for b"),
        ([thought("A"), call("a"), thought("B"), call("b"), output("a"), output("b")],
         "assistant: <A\nB> a=f({}) b=f({})\ntool(f): x for a\ntool(f): x for b"),
        ([thought("A"), said("s"), call("a"), output("a"), thought("B"), said("t")],
         "assistant: <A> s a=f({})\ntool(f): x for a\nassistant: <B> t"),
        ([call("a"), said("s"), output("a")], "assistant: s a=f({})\ntool(f): x for a"),
        ([said("s"), said("t")], "assistant: s\nassistant: t"),
        ([said("s"), thought("B"), said("t")], "assistant: s\nassistant: <B> t"),
        ([thought("A")], "assistant: <A> "),
        ([thought("A"), ASK], "assistant: <A> \nuser: Hi"),
        ([thought("S", "summary"), said("s")], "assistant: <S> s"),
        ([thought("S", "summary") | thought("A"), said("s")], "assistant: <A> s"),
        ([{"type": "reasoning", "summary": [], "encrypted_content": "x"}, said("s")], "assistant: s"),
    ],
)  # fmt: skip
def test_items_make_turns(items, shown):
    """What the model thought, said and called in a row is one turn of it, with its own texts where it has both."""
    assert prompt_of("responses", [ASK, *items]) == f"user: Hi\n{shown}\n"


def test_what_clients_add_to_calls_is_listed():
    """As openai-python has them in its output items."""
    items = [call("a") | {"id": "fc_1", "status": "completed", "parsed_arguments": {}}, output("a") | {"name": "f"}]
    assert read("responses", [ASK, *items])[1] == (
        '299 - "ignored: input[].id, input[].status, input[].parsed_arguments, input[].name"'
    )


@pytest.mark.parametrize(
    ("items", "param"),
    [
        ([output("a")], "input[0].call_id"),
        ([call("a"), ASK, output("a")], "input[2].call_id"),
        ([call("a"), call("a")], "input[1].call_id"),
        ([call("a") | {"arguments": {}}], "input[0].arguments"),
        ([call("a"), output("a") | {"output": [{"type": "input_image"}]}], "input[1].output[0].type"),
        ([thought("A") | {"content": [{"type": "output_text", "text": "x"}]}], "input[0].content[0].type"),
        ([{"type": "custom_tool_call_output", "call_id": "a"}], "input[0].type"),
    ],
)
def test_items_that_cannot_be_read(items, param):
    """A refusal names the place."""
    error = refusal(*items)
    assert error.param == param
    assert param in error.message


@pytest.mark.parametrize(
    ("choice", "param"),
    [
        ({"type": "function"}, "tool_choice.name"),
        ({"type": "web_search"}, "tool_choice.type"),
        ({"type": "allowed_tools", "mode": "auto"}, "tool_choice.tools"),
        ({"type": "allowed_tools", "mode": "all", "tools": []}, "tool_choice.mode"),
        ({"type": "allowed_tools", "mode": "auto", "tools": [{"type": "mcp"}]}, "tool_choice.tools[0].type"),
        ({"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "g"}]}, "tool_choice.tools"),
    ],
)
def test_a_choice_is_whole(choice, param):
    """A refusal names what is missing, or not known."""
    assert refusal(tools=[tool_of("responses", "f")], tool_choice=choice).param == param


@pytest.mark.parametrize(
    ("reasoning", "shown", "warning"),
    [
        ({"effort": "none"}, "thinking False", ""),
        ({"effort": "low"}, "", '299 - "ignored: reasoning.effort"'),
        ({"summary": "auto"}, "", '299 - "ignored: reasoning.summary"'),
        ({"effort": None}, "", ""),
    ],
)
def test_effort_is_a_variable_of_the_template(reasoning, shown, warning):
    """Or its switch; a summary is never made."""
    generation, header = read("responses", [ASK], reasoning=reasoning)
    assert MODEL.codec.decode(generation.prompt) == f"user: Hi\n{shown}"
    assert header == warning
    generation, header = read("responses", [ASK], source="{{ reasoning_effort }}", reasoning={"effort": "low"})
    assert (MODEL.codec.decode(generation.prompt), header) == ("low", "")


def test_the_response_repeats_what_was_asked():
    """As the client sent it."""
    tools = [tool_of("responses", "f", OK)]
    fields = {"tools": tools, "tool_choice": "required", "parallel_tool_calls": False, "reasoning": {"effort": "none"}}
    event = response(**fields)
    assert {name: event[name] for name in fields} == fields | {"reasoning": {"effort": "none", "summary": None}}
    nothing = response()
    assert (nothing["tools"], nothing["tool_choice"], nothing["parallel_tool_calls"]) == ([], "auto", True)
