"""Code behind <|python_tag|>: a call of the tool that runs code, if the request has one."""

from __future__ import annotations

import pytest

from rbee.server.text.output import ModelFormat, Tool
from tests.server.text.output.recorded_parts import call, said, text

CODE = 'import sys\n\nprint("a", [1], {"b": \'c\'})\n'
JSON = r'"import sys\n\nprint(\"a\", [1], {\"b\": ' + r"'c'})\n" + '"'


def tool(name, *parameters):
    """A tool with these parameters."""
    return Tool(name, None, {"type": "object", "properties": {key: {"type": "string"} for key in parameters}})


def read(output, *tools, tool_parser="llama3_json"):
    """What a parser makes of it, whole and cut at each place."""
    parts = []
    for pieces in ([output], list(output), *([output[:at], output[at:]] for at in range(1, len(output)))):
        parser = ModelFormat(tool_parser, "none").parser(tools=tools, reasoning_open=False)
        spans = [span for piece in pieces for span in parser.push(piece)]
        parts.append(said(spans + parser.finish()))
    assert parts == [parts[0]] * len(parts)
    return parts[0]


@pytest.mark.parametrize("tool_parser", ["llama3_json", "functionary_v3_1"])
@pytest.mark.parametrize(
    ("tools", "name", "key"),
    [
        ([tool("code_interpreter", "code")], "code_interpreter", "code"),
        ([tool("f", "a"), tool("python", "source")], "python", "source"),
        ([tool("python", "a", "b"), tool("ipython", "a", "b")], "ipython", "code"),
        ([Tool("python")], "python", "code"),
    ],
)
def test_code_is_a_call_of_the_tool_that_runs_it(tool_parser, tools, name, key):
    """Its only parameter, or "code", has all of it, up to the end of the message."""
    arguments = f'{{"{key}": {JSON}}}'
    for end in ("", "<|eom_id|>", "<|eot_id|>"):
        output = f"I run it.\n<|python_tag|>{CODE}{end}"
        assert read(output, *tools, tool_parser=tool_parser) == (text("I run it.\n"), call(name, arguments))


def test_code_comes_as_it_is_written():
    """Character by character, but for what may be the end of the message."""
    parser = ModelFormat("llama3_json", "none").parser(tools=[tool("python", "code")], reasoning_open=False)
    shown = "".join(span.text for span in parser.push('<|python_tag|>print("'))
    assert shown == r'python{"code": "print(\"'
    assert [span.text for span in parser.push("a\n")] == [r"a\n"]
    assert parser.push("<|eom") == []
    assert "".join(span.text for span in parser.finish()) == '<|eom"}'


@pytest.mark.parametrize("tool_parser", ["llama3_json", "functionary_v3_1"])
def test_code_without_such_a_tool_is_text(tool_parser):
    """As it is."""
    assert read(f"<|python_tag|>{CODE}", tool("f", "a"), tool_parser=tool_parser) == (text(CODE),)


def test_calls_are_no_code():
    """In JSON, and in Python's words of a tool of the request or of Llama's own; any other call is code."""
    tools = [tool("python", "code"), tool("f", "a")]
    assert read('<|python_tag|>{"name": "f", "parameters": {}}', *tools) == (call("f", "{}"),)
    assert read('<|python_tag|>f.call(a="1")', *tools) == (call("f", '{"a": "1"}'),)
    assert read('<|python_tag|>brave_search.call(query="1")', *tools) == (call("brave_search", '{"query": "1"}'),)
    assert read("<|python_tag|>[f.call() for f in g]", *tools) == (call("python", '{"code": "[f.call() for f in g]"}'),)
