"""Tools in requests of the three chat protocols: what each is read as, and what is refused, by its place."""

from __future__ import annotations

import json
from typing import Any

import pytest

from rbee.server.errors import Refusal
from rbee.server.http.refusals import status_of
from rbee.server.protocols.tools import MAX_DEPTH, MAX_TOOLS
from rbee.server.text.output.tools import Tool
from tests.server.protocols.parameters_parts import MODEL
from tests.server.protocols.tools_parts import (
    ARGUMENTS,
    ASKED,
    OK,
    SCHEMA,
    SHOWN,
    choice_of,
    conversation,
    prompt_of,
    read,
    tool_of,
)

PROTOCOLS = ["chat", "responses", "messages"]
ALL = pytest.mark.parametrize("protocol", PROTOCOLS)
ASK = [{"role": "user", "content": "Zürich?"}]
WEATHER, TIME = Tool("weather", "It.", SCHEMA, strict=True), Tool("time", None, {}, strict=False)
ANY = {"chat": "required", "responses": "required", "messages": {"type": "any"}}
NONE = {"chat": "none", "responses": "none", "messages": {"type": "none"}}


def tools(protocol):
    """The two tools."""
    return [tool_of(protocol, "weather", description="It.", strict=True), tool_of(protocol, "time", {})]


def use(protocol, **fields):
    """How a request uses them."""
    return read(protocol, ASK, **{"tools": tools(protocol)} | fields)[0].tool_use


def refusal(protocol, messages=None, **fields):
    """The error for these fields."""
    with pytest.raises(Refusal) as caught:
        read(protocol, ASK if messages is None else messages, **fields)
    assert status_of(caught.value) == 400
    assert str(caught.value.param) in caught.value.message
    return caught.value


@ALL
def test_tools_are_offered(protocol):
    """All protocols make the same of them; where nothing is said the model decides, and may call several."""
    found = use(protocol)
    assert (found.offered, found.tools) == ((WEATHER, TIME), (WEATHER, TIME))
    assert (found.choice, found.parallel) == ("auto", True)


@ALL
def test_a_call_can_be_asked_for(protocol):
    """Of any tool, or of one by name; the prompt shows all of them in both cases."""
    found = use(protocol, tool_choice=ANY[protocol])
    assert (found.tools, found.choice) == ((WEATHER, TIME), "required")
    found = use(protocol, tool_choice=choice_of(protocol, "time"))
    assert (found.offered, found.tools, found.choice) == ((WEATHER, TIME), (TIME,), "required")


@ALL
def test_no_call_can_be_asked_for(protocol):
    """The prompt is that of a request without tools."""
    found = use(protocol, tool_choice=NONE[protocol])
    assert (found.offered, found.tools, found.choice) == ((), (), "none")
    shown = prompt_of(protocol, ASK, tools=tools(protocol), tool_choice=NONE[protocol])
    assert shown == prompt_of(protocol, ASK) == ASKED
    assert '{"name": "weather", "description": "It."' in prompt_of(protocol, ASK, tools=tools(protocol))


@pytest.mark.parametrize(
    ("protocol", "fields"),
    [
        ("chat", {"parallel_tool_calls": False}),
        ("responses", {"parallel_tool_calls": False}),
        ("messages", {"tool_choice": {"type": "auto", "disable_parallel_tool_use": True}}),
    ],
)
def test_one_call_at_most(protocol, fields):
    """Is a choice of its own."""
    found = use(protocol, **fields)
    assert (found.choice, found.parallel) == ("auto", False)


@pytest.mark.parametrize("mode", ["auto", "required"])
def test_some_tools_may_be_called(mode):
    """OpenAI's allowed_tools: the prompt shows the others too."""
    named = {"type": "function", "function": {"name": "time"}}
    of_chat = {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": [named]}}
    of_responses = {"type": "allowed_tools", "mode": mode, "tools": [{"type": "function", "name": "time"}]}
    for found in (use("chat", tool_choice=of_chat), use("responses", tool_choice=of_responses)):
        assert (found.offered, found.tools, found.choice) == ((WEATHER, TIME), (TIME,), mode)


@pytest.mark.parametrize(
    ("protocol", "choice", "param"),
    [
        ("messages", {"type": "auto", "name": "time"}, "tool_choice.name"),
        ("chat", choice_of("chat", "time") | {"allowed_tools": {}}, "tool_choice.allowed_tools"),
        ("chat", {"type": "allowed_tools", "function": {"name": "time"}}, "tool_choice.function"),
        ("responses", choice_of("responses", "time") | {"mode": "auto"}, "tool_choice.mode"),
        ("responses", choice_of("responses", "time") | {"tools": []}, "tool_choice.tools"),
        ("responses", {"type": "allowed_tools", "name": "time", "mode": "auto", "tools": []}, "tool_choice.name"),
    ],
)
def test_a_choice_has_what_its_type_has(protocol, choice, param):
    """Nothing of it is left out."""
    error = refusal(protocol, tools=tools(protocol), tool_choice=choice)
    assert error.param == param
    assert "leave it out" in error.message


def test_an_empty_list_of_allowed_tools_is_none():
    """A model that saw tools would sometimes call one."""
    for protocol, more in (
        ("chat", {"allowed_tools": {"mode": "auto", "tools": []}}),
        ("responses", {"mode": "auto", "tools": []}),
    ):
        found = use(protocol, tool_choice={"type": "allowed_tools"} | more)
        assert (found.offered, found.tools, found.choice) == ((), (), "none")


def test_no_tool_may_be_called():
    """With an empty list of allowed tools: where a call is asked for, that is what is wrong."""
    for protocol, more, param in (
        ("chat", {"allowed_tools": {"mode": "required", "tools": []}}, "tool_choice.allowed_tools.tools"),
        ("responses", {"mode": "required", "tools": []}, "tool_choice.tools"),
    ):
        error = refusal(protocol, tools=tools(protocol), tool_choice={"type": "allowed_tools"} | more)
        assert error.param == param
        assert "is empty" in error.message


@ALL
def test_without_tools_nothing_is_used(protocol):
    """An empty list, null and the choices that need no tools are those of a client that leaves nothing out."""
    auto = {"type": "auto"} if protocol == "messages" else "auto"
    fields: dict[str, Any]
    for fields in ({}, {"tools": []}, {"tools": None, "tool_choice": None}, {"tools": [], "tool_choice": auto}):
        found = read(protocol, ASK, **fields)[0].tool_use
        assert (found.offered, found.tools, found.choice) == ((), (), "none")


@ALL
def test_a_conversation_with_calls(protocol):
    """Thoughts, text and calls are one turn, and each result is a message: the same prompt in all protocols."""
    assert prompt_of(protocol) == SHOWN


@ALL
def test_reasoning_that_is_sent_back(protocol):
    """Is listed as not followed, if the template does not show it."""
    source = "{% for m in messages %}{{ m.content }}{% endfor %}"
    generation, warning = read(protocol, source=source)
    assert "Hm." not in MODEL.codec.decode(generation.prompt)
    field = {
        "chat": "messages[].reasoning_content",
        "responses": "input[].content",
        "messages": "messages[].content[].thinking",
    }[protocol]
    assert field in warning
    assert field not in read(protocol)[1]


def deep(levels):
    """A value with so many objects in each other."""
    value: dict[str, Any] = {}
    for _ in range(levels - 1):
        value = {"x": value}
    return value


@ALL
def test_tools_are_bounded(protocol):
    """Their number, their names, and how deep their schemas are."""
    name = {"chat": "tools[{}].function.name", "responses": "tools[{}].name", "messages": "tools[{}].name"}[protocol]
    of_openai = {"chat": "tools[0].function.parameters", "responses": "tools[0].parameters"}
    schema = of_openai.get(protocol, "tools[0].input_schema")
    many = [tool_of(protocol, f"t{number}") for number in range(MAX_TOOLS + 1)]
    assert read(protocol, ASK, tools=[tool_of(protocol, f"t{number}", {}) for number in range(40)])
    assert refusal(protocol, tools=many).param == "tools"
    for wrong in ("", "a b", "a.b", "é", "x" * 129, "a\n"):
        assert refusal(protocol, tools=[tool_of(protocol, wrong)]).param == name.format(0)
    twice = refusal(protocol, tools=[tool_of(protocol, "x"), tool_of(protocol, "y"), tool_of(protocol, "x")])
    assert twice.param == name.format(2)
    assert f"as {name.format(0)} is" in twice.message
    assert read(protocol, ASK, tools=[tool_of(protocol, "x" * 128, deep(MAX_DEPTH))])
    assert refusal(protocol, tools=[tool_of(protocol, "x", deep(MAX_DEPTH + 2))]).param == schema
    assert refusal(protocol, tools=[tool_of(protocol, "x", {"type": "string"})]).param == f"{schema}.type"
    assert refusal(protocol, tools=[tool_of(protocol, "x", [1])]).param == schema
    assert refusal(protocol, tools=[tool_of(protocol, "x", OK, description=1)]).code == "invalid_type"
    assert "Did you mean" in refusal(protocol, tools=[tool_of(protocol, "x", OK, descripton="y")]).message


@ALL
def test_tools_of_the_vendors_servers_are_refused(protocol):
    """By name, with what is possible."""
    kind = "bash_20250124" if protocol == "messages" else "web_search"
    error = refusal(protocol, tools=[{"type": kind, "name": "x"}])
    assert (error.param, error.code) == ("tools[0].type", "unsupported_parameter")
    assert kind in error.message


@ALL
def test_a_choice_must_be_possible(protocol):
    """It names one of the tools, there are some, and it is of a known kind."""
    named = choice_of(protocol, "other")
    param = "tool_choice.function.name" if protocol == "chat" else "tool_choice.name"
    assert refusal(protocol, tools=tools(protocol), tool_choice=named).param == param
    assert refusal(protocol, tool_choice=ANY[protocol]).param == "tool_choice"
    assert refusal(protocol, tool_choice=named).param == param
    assert refusal(protocol, tools=tools(protocol), tool_choice={"type": "custom"}).param == "tool_choice.type"
    if protocol == "messages":
        assert refusal(protocol, tools=tools(protocol), tool_choice={"type": "tool"}).param == "tool_choice.name"
    else:
        assert refusal(protocol, tools=tools(protocol), tool_choice="any").param == "tool_choice"


@ALL
def test_results_follow_their_calls(protocol):
    """Each call has one, right behind its turn, in any order; one may have none."""
    chat = conversation(protocol)
    turn, end = (2, len(chat)) if protocol == "messages" else (len(chat) - 3, len(chat) - 1)
    if protocol == "messages":
        first, second, *_ = chat[2]["content"]

        def with_results(*results):
            return [*chat[:2], {"role": "user", "content": list(results)}]

        where = "messages[2].content[{}].tool_use_id"
    else:
        first, second = chat[turn:end]

        def with_results(*results):
            return [*chat[:turn], *results]

        where = "messages[{}].tool_call_id" if protocol == "chat" else "input[{}].call_id"
    number = 0 if protocol == "messages" else turn
    assert "for b\ntool" in prompt_of(protocol, with_results(second, first))
    assert prompt_of(protocol, with_results(second)).endswith("for b\n")
    again = refusal(protocol, with_results(first, second, first))
    assert again.param == where.format(number + 2)
    assert "has its result already" in again.message
    text = {"type": "text", "text": "x"} if protocol == "messages" else {"role": "user", "content": "x"}
    late = refusal(protocol, with_results(text, first))
    assert late.param == where.format(number + 1)
    assert "results come right behind the turn with their calls" in late.message
    key = where.rpartition(".")[2]
    other = refusal(protocol, with_results(first | {key: "c"}))
    assert "is 'c'" in other.message
    assert "which has 'a', 'b'" in other.message


ARGUMENTS_WRONG = [
    ("{", "is not valid JSON"),
    ("[1]", "must be the JSON text of an object"),
    ('"x"', "must be the JSON text of an object"),
    (json.dumps(deep(MAX_DEPTH + 2)), "nested more than"),
    ('{"x": ' + "[" * 20_000, "is not valid JSON"),
    ('{"x": [' + "[]," * 40_000 + "1]}", "more than 32768 objects"),
]


@pytest.mark.parametrize("protocol", ["chat", "responses"])
@pytest.mark.parametrize(("arguments", "says"), ARGUMENTS_WRONG, ids=[says for _, says in ARGUMENTS_WRONG])
def test_arguments_are_the_text_of_an_object(protocol, arguments, says):
    """And bounded as a request is."""
    if protocol == "chat":
        call = {"id": "a", "type": "function", "function": {"name": "f", "arguments": arguments}}
        chat: list[dict[str, Any]] = [*ASK, {"role": "assistant", "tool_calls": [call]}]
        param = "messages[1].tool_calls[0].function.arguments"
    else:
        chat = [*ASK, {"type": "function_call", "call_id": "a", "name": "f", "arguments": arguments}]
        param = "input[1].arguments"
    with pytest.raises(Refusal, match=says) as caught:
        read(protocol, chat)
    assert caught.value.param in (param, None)  # what is too much is so of the whole body


@pytest.mark.parametrize("protocol", ["chat", "responses"])
def test_arguments_are_bounded_together(protocol):
    """Many texts that hold little each hold no more than a request may."""

    def chat(number: int) -> list[dict[str, Any]]:
        text = '{"x": [' + "[]," * 5000 + "1]}"
        called: dict[str, Any] = {"name": "f", "arguments": text}
        if protocol == "responses":
            return [*ASK, *({"type": "function_call", "call_id": f"{n}"} | called for n in range(number))]
        calls = [{"id": f"{n}", "function": called} for n in range(number)]
        return [*ASK, *({"role": "assistant", "tool_calls": [call]} for call in calls)]

    source = "{{ messages | length }}"
    assert read(protocol, chat(4), source=source)
    with pytest.raises(Refusal, match="more than 32768 objects") as caught:
        read(protocol, chat(14), source=source)
    assert status_of(caught.value) == 400


@ALL
def test_calls_are_checked(protocol):
    """Their ids are there and differ, and a name is one that a tool may have."""

    def with_calls(*changes):
        chat = json.loads(json.dumps(conversation(protocol)))
        calls = {"chat": lambda: chat[1]["tool_calls"], "messages": lambda: chat[1]["content"][2:]}
        found = calls.get(protocol, lambda: chat[3:5])()
        for call, change in zip(found, changes, strict=False):
            target = call["function"] if protocol == "chat" and "name" in change else call
            target.update(change)
        return chat

    key = "call_id" if protocol == "responses" else "id"
    assert refusal(protocol, with_calls({key: ""})).param.endswith(f".{key}")
    assert refusal(protocol, with_calls({key: "x" * 257})).param.endswith(f".{key}")
    assert "as another call of this turn" in refusal(protocol, with_calls({}, {key: "a"})).message
    assert refusal(protocol, with_calls({"name": "a b"})).param.endswith(".name")


@ALL
def test_everything_may_be_a_schema(protocol):
    """What the prompt has of it is the client's."""
    schema = {"type": ["object", "null"], "$defs": {"a": True}, "properties": {"b": {"$ref": "#/$defs/a"}}}
    assert json.dumps(schema) in prompt_of(protocol, ASK, tools=[tool_of(protocol, "f", schema)])
    assert json.loads(ARGUMENTS) == {"city": "Zürich"}
