"""Tools as plain text, for chat templates that know nothing of them."""

from __future__ import annotations

import pytest

from rbee.server.text.chat_template import ChatTemplate
from rbee.server.text.output.tools import Tool
from rbee.server.text.tool_use import ToolCall
from tests.server.text.chat_forms_parts import CHAT_FORMS

PING = Tool("ping", "Ask for an answer.", {"type": "object", "properties": {"host": {"type": "string"}}})
PONG = Tool("pong", None, {})
SHOWN = """\
You can call functions that give you information or do something for the user. Here they are, one JSON object a line:
<tools>
{"type": "function", "function": {"name": "ping", "description": "Ask for an answer.", "parameters": \
{"type": "object", "properties": {"host": {"type": "string"}}}}}
{"type": "function", "function": {"name": "pong", "parameters": {"type": "object", "properties": {}}}}
</tools>
To call one, answer with its name and its arguments as JSON:
<tool_call>
{"name": "the function's name", "arguments": {"an argument's name": "its value"}}
</tool_call>"""
ASK = {"role": "user", "content": "Go."}
CALLS = {
    "role": "assistant",
    "content": "Now.",
    "tool_calls": [ToolCall("a", "ping", {"host": "é"}, '{"host":"\\u00e9"}'), ToolCall("b", "pong", {}, "{}")],
}
RESULTS = [
    {"role": "tool", "tool_call_id": "a", "name": "ping", "content": "up"},
    {"role": "tool", "tool_call_id": "b", "name": "pong", "content": ""},
]
CALLS_SHOWN = """\
Now.
<tool_call>
{"name": "ping", "arguments": {"host": "é"}}
</tool_call>
<tool_call>
{"name": "pong", "arguments": {}}
</tool_call>"""
RESULTS_SHOWN = """\
<tool_response>
up
</tool_response>
<tool_response>

</tool_response>"""

# Roles that alternate, and no others: as Gemma's and many an older template.
STRICT = """\
{%- for message in messages -%}
    {%- if (message.role == 'user') != (loop.index0 % 2 == 0) -%}{{- raise_exception('alternate') -}}{%- endif -%}
    {{- '<' + message.role + '>' + message.content | trim -}}
{%- endfor -%}"""


def turns(name, messages, tools=(PING, PONG)):
    """The turns of a prompt in the im_start form, of which the last opens the answer."""
    form = CHAT_FORMS[name]
    [text] = ChatTemplate(form.template, form.names).render(messages, tools=tools)
    *whole, last = text.removeprefix("<|im_start|>").split("<|im_end|>\n<|im_start|>")
    assert last == "assistant\n"
    return whole


def test_tools_stand_in_the_system_message():
    """Behind what it says, or in one of their own."""
    system = {"role": "system", "content": "Be brief."}
    assert turns("im_start", [system, ASK]) == [f"system\nBe brief.\n\n{SHOWN}", "user\nGo."]
    assert turns("im_start", [ASK]) == [f"system\n{SHOWN}", "user\nGo."]


def test_calls_and_results_are_text():
    """Calls of the assistant; results in a row are one turn of the user, together with what the user says then."""
    chat = [ASK, CALLS, *RESULTS]
    shown = [f"system\n{SHOWN}", "user\nGo.", f"assistant\n{CALLS_SHOWN}", f"user\n{RESULTS_SHOWN}"]
    assert turns("im_start", chat) == shown
    assert turns("im_start", [*chat, ASK]) == [*shown[:3], f"user\n{RESULTS_SHOWN}\nGo."]


def test_calls_and_results_without_tools():
    """As in the last request of a loop, which offers none any more."""
    system, *others = turns("im_start", [ASK, CALLS, *RESULTS], tools=())
    assert system == "system\nBe kind."
    assert others == ["user\nGo.", f"assistant\n{CALLS_SHOWN}", f"user\n{RESULTS_SHOWN}"]


def test_a_template_without_system_messages():
    """Has the tools in front of what the user says first."""
    rendered = ChatTemplate(STRICT, {}).render([ASK, CALLS, *RESULTS], tools=[PING, PONG])
    assert rendered == [f"<user>{SHOWN}\n\nGo.<assistant>{CALLS_SHOWN}<user>{RESULTS_SHOWN}"]


def test_a_conversation_that_begins_with_calls():
    """Has the tools in front of them, where the template has no place for tools and none for a system message."""
    source = (
        "{% for m in messages if m.role != 'system' %}<{{ m.role }}>{{ m.content or '' }}"
        "{% for c in m.tool_calls or [] %}{{ c.function.name }}{{ c.function.arguments | tojson }}{% endfor %}"
        "{% endfor %}"
    )
    template = ChatTemplate(source, {})
    assert (template.abilities.shows_calls, template.abilities.shows_tools) == (True, False)
    [text] = template.render([CALLS | {"content": None}, *RESULTS], tools=[PING], add_generation_prompt=False)
    introduction, _, calls = text.removeprefix("<assistant>").partition("</tools>")
    assert "Ask for an answer." in introduction
    assert calls.endswith("pong{}<tool>up<tool>")


@pytest.mark.parametrize("field", ["tool_calls", "tool_call_id"])
def test_a_template_that_knows_no_tools_never_sees_their_fields(field):
    """It gets plain messages."""
    form = "{% for m in messages %}{{ m." + field + " is defined }},{% endfor %}{{ tools }}"
    rendered = ChatTemplate(form, {}).render([ASK, CALLS, *RESULTS])
    assert rendered == ["False,False,False,None"]


def test_the_default_model(default_model):
    """SmolLM2's template is one of these: it has the tools in place of its own system message."""
    template = ChatTemplate((default_model.path / "chat_template.jinja").read_text(), {})
    [text] = template.render([ASK, CALLS, *RESULTS], tools=[PING, PONG])
    assert text == (
        f"<|im_start|>system\n{SHOWN}<|im_end|>\n<|im_start|>user\nGo.<|im_end|>\n"
        f"<|im_start|>assistant\n{CALLS_SHOWN}<|im_end|>\n<|im_start|>user\n{RESULTS_SHOWN}<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


@pytest.mark.parametrize("before_tools", ["<|tool_list_start|>", "List of tools: ["])
def test_a_template_of_lfm2_gets_its_own_calls(before_tools):
    """LFM2 and LFM2.5 show tools and results, and leave calls out: they are in Python's words, as the models do."""
    source = (
        f"{{{{ '{before_tools}' + (tools | tojson) if tools else '' }}}}"
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    )
    arguments = {"a": 1, "b": [True, None], "c": {"d": "\"e'"}}
    call = ToolCall("a", "ping", arguments, "")
    turn = CALLS | {"tool_calls": [call, *CALLS["tool_calls"][1:]]}
    [text] = ChatTemplate(source, {}).render([ASK, turn, *RESULTS], tools=[PING])
    assert text.partition("<user>")[2] == (
        'Go.<assistant>Now.\n<|tool_call_start|>[ping(a=1, b=[True, None], c={"d": "\\"e\'"}), pong()]'
        "<|tool_call_end|><tool>up<tool>"
    )
