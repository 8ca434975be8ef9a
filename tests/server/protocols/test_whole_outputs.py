"""What the whole output of a chat may be: an answer's form beside reasoning and calls, and which field is wrong."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
from typing import Any

import pytest

from rbee.config import SYNTHETIC
from rbee.server.errors import Refusal
from rbee.server.protocols.openai.reader import RequestReader
from rbee.server.text.chat_template import ChatTemplate
from rbee.server.text.grammars import GrammarChecks
from rbee.server.text.output import AUTO, output_format
from tests.server.protocols.forms_parts import allows
from tests.server.protocols.parameters_parts import HI, MODEL, ready
from tests.server.protocols.tools_parts import read

# The prompt of an answer ends inside of the reasoning; calls are written as Hermes'.
SOURCE = """\
{% for m in messages %}{{ m.content }}{% endfor %}{% if add_generation_prompt %}<think>
{% endif %}{# </think> <tool_call> #}"""
GOOD: dict[str, Any] = {"type": "object"}
BAD: dict[str, Any] = {"type": "object", "not": {"required": ["a"]}}


def chat(*, tool_parser: str = AUTO, reasoning_parser: str = AUTO, **fields: Any) -> Any:
    """The generation of a chat with this template."""
    model = dataclasses.replace(
        MODEL,
        chat_template=ChatTemplate(SOURCE, {}),
        output_format=output_format(SOURCE, tool_parser=tool_parser, reasoning_parser=reasoning_parser),
    )
    reader = RequestReader(model, num_rings=64, ring_capacity=1024, lenient=False)
    return reader.read_chat(json.dumps(HI | fields).encode(), [], ready(max_model_len=2000), 0).generation


def tool(schema: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A strict one."""
    return {"type": "function", "function": {"name": "f", "parameters": schema, "strict": True} | more}


def answer(schema: dict[str, Any]) -> dict[str, Any]:
    """A response format."""
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}


@pytest.mark.parametrize(
    "fields",
    [
        {"guided_grammar": 'start: "yes" | other // }\nother: "no"'},
        {"grammar": 'root ::= "yes" | other\nother ::= "no"'},
        {"guided_choice": ["yes", "no"]},
    ],
    ids=["Lark", "GBNF", "choice"],
)
def test_a_form_is_that_of_the_answer(fields):
    """Behind reasoning that the prompt has opened, also if the form is a grammar of several rules."""
    generation = chat(**fields)
    assert generation.output.reasoning_open
    for text in ("Hm.</think>yes", "yes or no?\n</think>no"):
        assert allows(generation.grammar, text), text
    for text in ("yes", "Hm.</think>maybe", "</think>yesno", "</think>\n\nno"):
        assert not allows(generation.grammar, text), text


@pytest.mark.parametrize(
    ("beginning", "is_open"),
    [
        ("<think>Hm", True),
        ("\n<think>\n", True),
        ("<think>Hm.</think>So", False),
        ("The tag <think> is", False),
        ("The tag <think>", False),
        ("", False),
    ],
)
def test_an_answer_that_the_client_has_begun(beginning, is_open):
    """Goes on with reasoning where the beginning has opened it, as the parser would read it: before any text."""
    messages = [*HI["messages"], {"role": "assistant", "content": beginning}]
    assert chat(messages=messages, continue_final_message=True).output.reasoning_open is is_open


def test_what_is_read():
    """Answers of a model that reasons, and where there are tools; not where special tokens are to be shown."""
    assert chat().output.reasoning_open
    assert chat(skip_special_tokens=False).output is None
    assert chat(skip_special_tokens=False, tools=[tool(GOOD)]).output is not None
    assert chat(reasoning_parser="none").output is None
    assert not chat(reasoning_parser="none", tools=[tool(GOOD)]).output.reasoning_open


async def refused(**fields: Any) -> Refusal | None:
    """Why the grammar of such a chat cannot be enforced."""
    generation = chat(**fields)
    with contextlib.closing(GrammarChecks(SYNTHETIC)) as checks:
        check = checks.check(generation.grammar, generation.grammar_param, generation.grammar_parts)
        [refusal] = await asyncio.gather(check, return_exceptions=True)
    assert refusal is None or isinstance(refusal, Refusal)
    return refusal


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [tool(BAD)]}, "tools[0]"),
        ({"tools": [tool(BAD)], "response_format": answer(GOOD)}, "tools[0]"),
        ({"tools": [tool(GOOD)], "response_format": answer(BAD)}, "response_format.json_schema.schema"),
        ({"tools": [tool(BAD)], "response_format": answer(BAD)}, "response_format.json_schema.schema"),
        ({"response_format": answer(BAD)}, "response_format.json_schema.schema"),
        ({"guided_grammar": "start: x"}, "guided_grammar"),
        ({"tools": [tool(GOOD)], "response_format": answer(GOOD)}, None),
    ],
)
async def test_what_cannot_be_enforced_is_blamed(fields, param):
    """Of an answer's form and the tools, the one that is wrong."""
    refusal = await refused(**fields)
    assert (refusal is None) == (param is None)
    if refusal is not None:
        assert refusal.param == param
        called = ", the tool 'f'," if param == "tools[0]" else ""
        assert refusal.message.startswith(f"{param}{called} cannot be enforced: ")


@pytest.mark.anyio
@pytest.mark.parametrize("wrong", range(5))
async def test_the_tool_that_cannot_be_enforced_is_named(wrong):
    """Wherever it stands, by its place among all tools, those that are not strict too; it alone is wrong by itself."""
    tools = [tool(BAD if number == wrong else GOOD, name=f"f{number}") for number in range(5)]
    tools.insert(0, tool(BAD, name="free", strict=False))
    refusal = await refused(tools=tools)
    assert refusal is not None
    assert refusal.param == f"tools[{wrong + 1}]"
    name = f"tools[{wrong + 1}], the tool 'f{wrong}',"
    assert refusal.message.startswith(f"{name} cannot be enforced: ")
    assert refusal.message.endswith('Unimplemented keys: ["not"]. Change or simplify it, or leave it out.')


def test_no_call_can_be_asked_for_where_calls_are_text():
    """The answer would be free, and hold none; tools may be offered, and called by what is text to this server."""
    for choice in ("required", {"type": "function", "function": {"name": "f"}}):
        with pytest.raises(Refusal, match="--tool-parser none") as caught:
            chat(tool_parser="none", tools=[tool(GOOD)], tool_choice=choice)
        assert caught.value.param == "tool_choice"
    assert chat(tool_parser="none", tools=[tool(GOOD)]).grammar == ""


@pytest.mark.parametrize("kind", ["json_object", "text"])
@pytest.mark.parametrize(("protocol", "field"), [("responses", "text.format"), ("messages", "output_config.format")])
def test_a_schema_is_never_left_out(protocol, field, kind):
    """A format of another type has no place for one."""
    outer, inner = field.split(".")
    with pytest.raises(Refusal, match=r"send .*type 'json_schema'") as caught:
        read(protocol, HI["messages"], **{outer: {inner: {"type": kind, "schema": GOOD}}})
    assert caught.value.param == f"{field}.schema"


def free(*names: str) -> list[dict[str, Any]]:
    """Tools that are not strict."""
    return [tool(GOOD, name=name, strict=False) for name in names]


def called(*names: str) -> str:
    """An output that calls these."""
    return "Hm.</think>" + "\n".join(
        f'<tool_call>\n{{"name": "{name}", "arguments": {{}}}}\n</tool_call>' for name in names
    )


def test_tools_that_are_not_allowed_are_not_called():
    """Although the prompt shows them: OpenAI's allowed_tools, with the model free to call or not."""
    named = {"type": "function", "function": {"name": "f"}}
    choice = {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [named]}}
    generation = chat(tools=free("f", "g"), tool_choice=choice)
    outputs = {called("f"): True, called("f", "f"): True, "Hm.</think>No.": True, called("g"): False}
    outputs[called("f", "g")] = False
    assert {output: allows(generation.grammar, output) for output in outputs} == outputs
    both = {
        "type": "allowed_tools",
        "allowed_tools": {"mode": "auto", "tools": [named, named | {"function": {"name": "g"}}]},
    }
    assert chat(tools=free("f", "g"), tool_choice=both).grammar == ""
    assert chat(tool_parser="none", tools=free("f", "g"), tool_choice=choice).grammar == ""


@pytest.mark.parametrize("choice", ["auto", "required"])
def test_calls_one_at_a_time(choice):
    """With parallel_tool_calls, and Anthropic's disable_parallel_tool_use, which becomes the same."""
    generation = chat(tools=free("f", "g"), tool_choice=choice, parallel_tool_calls=False)
    assert allows(generation.grammar, called("g"))
    assert not allows(generation.grammar, called("f", "g"))
    assert allows(generation.grammar, "Hm.</think>No.") == (choice == "auto")
