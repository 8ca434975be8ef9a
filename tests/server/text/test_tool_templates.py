"""Tools in prompts: as transformers renders them, and what a template gets that takes another form."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys

import pytest

from rbee.server.text.chat_template import ChatTemplate
from rbee.server.text.output.tools import Tool
from rbee.server.text.templates.abilities import Abilities
from rbee.server.text.templates.engine import to_json
from rbee.server.text.tokenizer import TextCodec
from rbee.server.text.tool_use import ToolCall
from tests.server.text.tool_forms_parts import (
    BOTH,
    CALL,
    CONVERSATIONS,
    OTHER_CALL,
    OTHER_RESULT,
    RESULT,
    TOOL_FORMS,
    USER,
    WEATHER,
    prompt,
)

REFERENCE = """
import json, sys
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast
for form in json.load(sys.stdin):
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(form["tokenizer"]), **form["names"])
    print(json.dumps([
        tokenizer.apply_chat_template(
            chat["messages"], tools=chat["tools"], chat_template=form["template"], add_generation_prompt=True,
            tokenize=True, return_dict=False,
        )
        for chat in form["chats"]
    ]))
"""


@pytest.mark.slow
def test_equal_to_transformers():
    """Id by id, wherever the template takes the conversation as it came."""
    cases = [(form, [name for name in CONVERSATIONS if name not in form.adapted]) for form in TOOL_FORMS.values()]
    forms = [
        {
            "tokenizer": form.tokenizer().to_str(),
            "names": form.names,
            "template": form.source,
            "chats": [form.expected(CONVERSATIONS[name]) for name in names],
        }
        for form, names in cases
    ]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", REFERENCE],
        input=json.dumps(forms),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    theirs = [json.loads(line) for line in done.stdout.splitlines()]
    for (form, names), of_form in zip(cases, theirs, strict=True):
        codec = TextCodec(form.tokenizer())
        for name, ids in zip(names, of_form, strict=True):
            ours = codec.encode_pieces(prompt(form, CONVERSATIONS[name]))
            assert ours == ids, (form.name, name, "".join(prompt(form, CONVERSATIONS[name])))


def text(name, conversation, **fields):
    """The whole prompt, without special tokens in what the client wrote."""
    [whole] = prompt(TOOL_FORMS[name], conversation, **fields)
    return whole


@pytest.mark.parametrize(
    ("name", "abilities"),
    [
        ("qwen2_5", {}),
        ("qwen3", {"reasoning_field": "reasoning_content", "thinking_switch": "enable_thinking"}),
        ("qwen3_coder", {}),
        ("hermes3", {"needs_description": True}),
        ("llama3_1", {"parallel_calls": False}),
        ("mistral_nemo", {"takes_long_ids": False}),
        ("granite3_3", {"shows_calls": False, "thinking_switch": "thinking"}),
        ("functionary3_1", {"needs_description": True, "arguments_as_text": True}),
        (
            "deepseek_v3",
            {
                "shows_tools": False,
                "arguments_as_text": True,
                "takes_empty": False,
                "text_beside_calls": False,
                "text_beside_reasoned_calls": False,
            },
        ),
        (
            "gpt_oss",
            {
                "needs_description": True,
                "parallel_calls": False,
                "text_beside_reasoned_calls": False,
                "reasoning_field": "thinking",
            },
        ),
    ],
)
def test_what_a_template_can_do_is_found_out(name, abilities):
    """All ten show tools, calls and results, take null and "" beside calls, and so on, but for what stands here."""
    usual = Abilities(shows_tools=True, shows_calls=True, shows_results=True)
    found = dataclasses.replace(TOOL_FORMS[name].template().abilities, example_call="")
    assert found == dataclasses.replace(usual, **abilities)


@pytest.mark.parametrize("name", ["llama3_1", "gpt_oss"])
def test_one_call_at_a_time(name):
    """Several calls of a turn become several turns, each with its result behind it, whatever their order was."""
    results = [OTHER_RESULT, RESULT]
    turns = [
        *(USER, {"role": "assistant", "content": "Both.", "tool_calls": [CALL, OTHER_CALL]}, *results, USER),
        {"role": "assistant", "content": "Fine."},
    ]
    one_by_one = [
        *(USER, {"role": "assistant", "content": "Both.", "tool_calls": [CALL]}, RESULT),
        *({"role": "assistant", "content": None, "tool_calls": [OTHER_CALL]}, OTHER_RESULT, *turns[-2:]),
    ]
    shown = text(name, {"messages": turns, "tools": BOTH})
    assert shown == text(name, {"messages": one_by_one, "tools": BOTH})
    assert shown.index("get_weather", shown.index("°C")) < shown.index("temp") < shown.index("Zürichsee")


def test_a_template_that_leaves_calls_out_beside_text():
    """Gets them as a turn of their own, behind the text."""
    shown = text("deepseek_v3", CONVERSATIONS["text and a call"])
    end, calls = "<｜end▁of▁sentence｜>", "<｜tool▁calls▁begin｜>"
    assert f"<｜Assistant｜>One moment.{end}<｜Assistant｜>{calls}" in shown


def test_a_template_that_fails_on_text_beside_reasoning():
    """Gets the text as a turn of its own too; without reasoning it has both in one."""
    turn = {"role": "assistant", "content": "One moment.", "reasoning_content": "Hm.", "tool_calls": [CALL]}
    shown = text("gpt_oss", {"messages": [USER, turn, RESULT], "tools": [WEATHER]})
    assert "<|channel|>final<|message|>One moment.<|end|><|start|>assistant<|channel|>analysis<|message|>Hm." in shown
    del turn["reasoning_content"]
    shown = text("gpt_oss", {"messages": [USER, turn, RESULT], "tools": [WEATHER]})
    assert "<|channel|>analysis<|message|>One moment.<|end|>" in shown


def test_ids_of_nine_letters():
    """A call and its result have the same one, in every request; those that fit are kept."""
    long_ids = json.loads(json.dumps(CONVERSATIONS["parallel calls"]).replace("call00001", "call_0123456789abcdef"))
    shown = text("mistral_nemo", long_ids)
    [of_call, kept] = re.findall(r'"id": "(\w{9})"', shown)
    assert re.findall(r'"call_id": "(\w{9})"', shown) == [of_call, kept]
    assert kept == "call00002"
    assert shown == text("mistral_nemo", long_ids)


def test_calls_of_granite():
    """Its templates name the tag of calls, and show none."""
    shown = text("granite3_3", CONVERSATIONS["parallel calls"])
    calls = (
        '[{"name": "get_weather", "arguments": {"city": "Zürich", "days": 2}}, '
        '{"name": "search-web", "arguments": {"query": "lake \\"Zürichsee\\" {1}"}}]'
    )
    assert f"<|start_of_role|>assistant<|end_of_role|><|tool_call|>{calls}<|end_of_text|>\n" in shown
    assert "<|start_of_role|>tool<|end_of_role|>[\n1]<|end_of_text|>\n" in shown


def test_tools_of_a_template_that_shows_calls_only():
    """They stand in the system message, with a call as the template itself writes it, its tokens whole."""
    pieces = prompt(TOOL_FORMS["deepseek_v3"], CONVERSATIONS["tools"])
    assert len(pieces) == 1
    tools = "\n".join(to_json(tool) for tool in BOTH)
    call = "<｜tool▁call▁begin｜>function<｜tool▁sep｜>function_name\n```json\n"
    assert pieces[0].startswith("<｜begin▁of▁sentence｜>Be brief.\n\n\nYou can call functions")
    assert f"\n<tools>\n{tools}\n</tools>\n" in pieces[0]
    assert f"<｜tool▁calls▁begin｜>{call}" in pieces[0]


@pytest.mark.parametrize(
    ("source", "content", "shown"),
    [
        ("{{ m.content }}/CALL", None, "/"),
        ("{{ '' + m.content }}/CALL", None, "/"),
        ("{{ m.content is none }}/CALL", None, "True/"),
        ("{{ m.content is none }}/CALL", "", "False/"),
        ("{% if m.content is none %}CALL{% endif %}", "", ""),
    ],
)
def test_content_beside_calls(source, content, shown):
    """It is what the client sent, null or "", unless the template fails on that, writes None or shows no call."""
    function = "m.tool_calls[0].function"
    source = source.replace("CALL", f"{{{{ {function}.name }}}}{{{{ {function}.arguments | tojson }}}}")
    template = ChatTemplate("{% for m in messages if m.tool_calls %}" + source + "{% endfor %}", {})
    turn = {"role": "assistant", "content": content, "tool_calls": [ToolCall("a", "get_weather", {}, "{}")]}
    assert template.render([turn]) == [shown + "get_weather{}"]


def test_a_tool_without_a_description_or_parameters():
    """Has an object without properties; the description is left out where the template can do without."""
    bare = {"messages": [USER], "tools": [{"type": "function", "function": {"name": "ping"}}]}
    expected = '{"type": "function", "function": {"name": "ping", "parameters": {"type": "object", "properties": {}}}}'
    assert expected in text("qwen2_5", bare)
    assert "// \ntype ping = () => any;" in text("gpt_oss", bare)


def test_reasoning_goes_to_templates_that_show_it():
    """The others never see it."""
    chat = CONVERSATIONS["reasoning"]
    assert "<think>\nLook it up.\n</think>" in text("qwen3", chat)
    assert "Look it up." not in text("qwen2_5", chat)


def test_a_template_of_its_own_for_tools():
    """It is used where tools are offered, as in transformers."""
    template = ChatTemplate("plain{{ tools }}", {}, with_tools="{{ tools | length }} tools")
    chosen = template.for_tools(offered=True)
    assert chosen.render([USER], tools=[Tool("f"), Tool("g")]) == ["2 tools"]
    assert template.for_tools(offered=False).render([USER]) == ["plainNone"]
