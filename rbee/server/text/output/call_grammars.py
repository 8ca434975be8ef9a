"""How calls are written in each format, as grammars: what stands around a name and its arguments.

The tags are those of the parsers; tests hold both to the same outputs.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

from rbee.server.text.output.dsml import DSML_CALLS, DSML_END_CALLS, DSML_END_INVOKE, DSML_END_PARAMETER, dsml_head
from rbee.server.text.output.lark import (
    CODE,
    NO_LIST,
    NO_OBJECT,
    QUOTED,
    SPACE,
    TEXT,
    Lark,
    either,
    literal,
)
from rbee.server.text.output.python_tag import PYTHON_TAG, code_tool
from rbee.server.text.output.pythonic import LFM2_END, LFM2_START, PYTHON_START
from rbee.server.text.output.schema_types import types_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rbee.server.text.output.tools import Tool


# Keywords of a schema that may allow members which "properties" does not mention.
_FURTHER_MEMBERS = frozenset(
    {
        *("additionalProperties", "patternProperties", "unevaluatedProperties", "dependentSchemas"),
        *("$ref", "allOf", "anyOf", "oneOf", "if"),
    }
)


class Calls(NamedTuple):
    """Expressions of one grammar. Only `alone` and `in_text` have calls, which are one or more."""

    alone: str  # calls that an answer begins with
    in_text: str  # text, then calls
    text: str = TEXT  # what follows calls, or has none
    before_text: str = ""  # what an answer that begins with text begins with


class CallWriter(NamedTuple):
    """Writes the calls of one request into a grammar."""

    lark: Lark
    tools: Sequence[Tool]
    is_bound: Callable[[Tool], bool]  # the tool's arguments follow its schema
    parallel: bool  # there may be several

    def several(self, between: str, call: str) -> str:
        """What may follow a call."""
        return f"({between} {call})*" if self.parallel else ""

    def arguments(self, tool: Tool) -> str:
        """A tool's arguments as JSON."""
        if not self.is_bound(tool):
            return self.lark.json({"type": "object"}, lenient=True)
        return self.lark.json(_closed(tool.parameters), lenient=not tool.strict)

    def object(self, tool: Tool, arguments: str) -> str:
        """A call as a JSON object; the arguments are its member of this name."""
        name = literal(json.dumps(tool.name, ensure_ascii=False))
        return (
            f'"{{" {SPACE} "\\"name\\"" {SPACE} ":" {SPACE} {name} {SPACE} "," {SPACE} '
            f'"\\"{arguments}\\"" {SPACE} ":" {SPACE} {self.arguments(tool)} {SPACE} "}}"'
        )


def _calls(
    writer: CallWriter,
    opener: str,
    call: Callable[[Tool], str],
    between: str = SPACE,
    around: tuple[str, str] | None = None,
) -> Calls:
    """Calls behind a tag, each as `call` writes it.

    Each has the tag; with `around`, which is what their list begins and ends with, it stands in front of all of them.
    """
    one = writer.lark.rule(either([call(tool) for tool in writer.tools]))
    tag = writer.lark.tag(opener)
    if around is None:
        rest = f"{one} {writer.several(between, f'{tag} {one}')}"
    else:
        rest = f"{around[0]} {one} {writer.several(between, one)} {around[1]}"
    return Calls(f"{tag} {rest}", f"{writer.lark.up_to([opener])} {rest}")


def _hermes(writer: CallWriter) -> Calls:
    end = writer.lark.tag("</tool_call>")
    return _calls(writer, "<tool_call>", lambda tool: f"{SPACE} {writer.object(tool, 'arguments')} {SPACE} {end}")


def _json_list(writer: CallWriter, opener: str) -> Calls:
    return _calls(
        writer,
        opener,
        lambda tool: writer.object(tool, "arguments"),
        between=f'{SPACE} "," {SPACE}',
        around=(f'{SPACE} "[" {SPACE}', f'{SPACE} "]"'),
    )


def _granite(writer: CallWriter) -> Calls:
    return _json_list(writer, "<|tool_call|>")


def _mistral(writer: CallWriter) -> Calls:
    """Names where the model has a token for it, else a list."""
    lark, opener = writer.lark, "[TOOL_CALLS]"
    if not lark.is_token("[ARGS]"):
        return _json_list(writer, opener)
    call_id = f"({lark.tag('[CALL_ID]')} /[0-9A-Za-z]{{9}}/)?" if lark.is_token("[CALL_ID]") else ""
    arguments = lark.tag("[ARGS]")
    return _calls(
        writer,
        opener,
        lambda tool: f"{literal(tool.name)} {call_id} {arguments} {writer.arguments(tool)}",
        between="",
    )


def _llama(writer: CallWriter) -> Calls:
    """An object of its own, or behind a tag: a text that begins like one is a call. Code is free or none."""
    one = writer.lark.rule(either([writer.object(tool, "parameters") for tool in writer.tools]))
    more = writer.several(f'{SPACE} ";" {SPACE}', one)
    calls = f"{one} {more}"
    tag, in_text = writer.lark.tag(PYTHON_TAG), writer.lark.up_to([PYTHON_TAG], NO_OBJECT)
    runs_code = code_tool({tool.name: tool for tool in writer.tools})
    if runs_code is None or writer.is_bound(runs_code):
        return Calls(f"({tag})? {calls}", f"{in_text} {calls}", text=NO_OBJECT)
    return Calls(  # code goes to the end of the output
        either([f"({tag})? {calls}", f"{tag} {CODE}"]),
        f"{in_text} {calls}",
        text=either([NO_OBJECT, f"{in_text} {CODE}"]),
    )


def _function_tags(writer: CallWriter) -> Calls:
    def call(tool: Tool) -> str:
        return f'{literal(tool.name + ">")} {writer.arguments(tool)} "</function>"'

    return _calls(writer, "<function=", call)


def _recipients(writer: CallWriter) -> Calls:
    """Text may hold >>>: it is a call where a tool's name follows."""
    names = [f"{tool.name}\n" for tool in writer.tools]
    arguments = [writer.arguments(tool) for tool in writer.tools]

    def calls(begin: Callable[[str], str]) -> str:
        return either([f"{begin(name)} {text}" for name, text in zip(names, arguments, strict=True)])

    more = writer.several(SPACE, calls(lambda name: literal(f">>>{name}")))
    return Calls(
        f"{calls(literal)} {more}",
        f"{calls(lambda name: writer.lark.up_to([f'>>>{name}']))} {more}",
        before_text='"all\\n"',
    )


def _deepseek(writer: CallWriter, before_name: str, before_arguments: str, behind: str) -> Calls:
    tag = writer.lark.tag

    def call(tool: Tool) -> str:
        name = literal(tool.name)
        return (
            f"{tag('<｜tool▁call▁begin｜>')} {before_name} {name} {before_arguments} {writer.arguments(tool)} "
            f"{behind} {tag('<｜tool▁call▁end｜>')}"
        )

    return _calls(writer, "<｜tool▁calls▁begin｜>", call, around=("", tag("<｜tool▁calls▁end｜>")))


def _deepseek_v3(writer: CallWriter) -> Calls:
    separator = writer.lark.tag("<｜tool▁sep｜>")
    return _deepseek(writer, f'"function" {separator}', '"\\n```json\\n"', '"\\n```"')


def _deepseek_v31(writer: CallWriter) -> Calls:
    return _deepseek(writer, "", writer.lark.tag("<｜tool▁sep｜>"), "")


def _deepseek_v32(writer: CallWriter) -> Calls:
    def call(tool: Tool) -> str:
        head = literal(dsml_head("invoke", tool.name))
        return f"{head} {SPACE} {_dsml_parameters(writer, tool)} {literal(DSML_END_INVOKE)}"

    calls = _calls(writer, DSML_CALLS, call, around=(SPACE, f"{SPACE} {literal(DSML_END_CALLS)}"))
    return calls._replace(alone=f"{SPACE} {calls.alone}")  # templates write line breaks in front of them


def _dsml_parameters(writer: CallWriter, tool: Tool) -> str:
    """The parameters of a call: those of the schema in their order, or any."""
    lark, end = writer.lark, f"{DSML_END_PARAMETER}\n"
    properties = tool.parameters.get("properties")
    if not writer.is_bound(tool) or not isinstance(properties, dict):
        any_head = '"<｜DSML｜parameter name=\\"" /[^<>"\\n]+/ "\\" string=\\"" ("true" | "false") "\\">"'
        return f"({any_head} {lark.up_to([end])})*"

    def one(key: str, schema: Any) -> str:
        types = types_of(tool.parameters, key)
        texts = _texts_of(schema)
        whole = {**_definitions(tool.parameters), **(schema if isinstance(schema, dict) else {})}
        value = f"{lark.json(whole, lenient=not tool.strict)} {literal(end)}"
        as_json = f"{literal(dsml_head('parameter', key, 'false'))} {value}"
        if types is None or "string" not in types:
            return as_json
        text = f"{either([literal(text) for text in texts])} {literal(end)}" if texts else lark.up_to([end])
        as_text = f"{literal(dsml_head('parameter', key, 'true'))} {text}"
        return as_text if types == frozenset({"string"}) else either([as_text, as_json])

    return _in_order(tool, {key: one(key, schema) for key, schema in properties.items()})


def _texts_of(schema: Any) -> list[str]:
    """The texts that a value may be, if its schema lists them."""
    enum = schema.get("enum") if isinstance(schema, dict) else None
    return [value for value in enum if isinstance(value, str)] if isinstance(enum, list) else []


def _in_order(tool: Tool, parameters: dict[str, str]) -> str:
    """All of them, those that are not required perhaps."""
    required = tool.parameters.get("required")
    return " ".join(
        one if isinstance(required, list) and key in required else f"({one})?" for key, one in parameters.items()
    )


_COMMA = f'"," {SPACE}'


def _pythonic(writer: CallWriter) -> Calls:
    """A list of its own, or behind a tag: a text that begins like one is calls."""
    one = writer.lark.rule(either([_python_call(writer, tool) for tool in writer.tools]))
    calls = f'"[" {one} {writer.several(_COMMA, one)} "]"'
    in_text = writer.lark.up_to([PYTHON_START], NO_LIST)
    return Calls(f"({writer.lark.tag(PYTHON_START)})? {calls}", f"{in_text} {calls}", text=NO_LIST)


def _lfm2(writer: CallWriter) -> Calls:
    end = f'"]" {writer.lark.tag(LFM2_END)}'
    return _calls(writer, LFM2_START, lambda tool: _python_call(writer, tool), between=_COMMA, around=('"["', end))


def _python_call(writer: CallWriter, tool: Tool) -> str:
    """NAME(KEY=VALUE, ...): the keys of the schema in their order, or any."""
    lark = writer.lark
    properties = tool.parameters.get("properties")
    if not writer.is_bound(tool) or not isinstance(properties, dict):
        value = lark.rule(either([lark.json({}, lenient=True), QUOTED, '"True"', '"False"', '"None"']))
        one = f'/[A-Za-z_][0-9A-Za-z_-]*/ "=" {value}'
        return f'{literal(f"{tool.name}(")} ({one} ({_COMMA} {one})*)? ")"'
    required = tool.parameters.get("required")
    first = rest = '""'  # what may follow where no key has come yet, and behind one
    for key, schema in reversed(properties.items()):
        one = f"{literal(f'{key}=')} {_python_value(writer, tool, key, schema)} {rest}"
        ways = [one], [f"{_COMMA} {one}"]
        if not (isinstance(required, list) and key in required):
            ways[0].append(first)
            ways[1].append(rest)
        first, rest = lark.rule(either(ways[0])), lark.rule(either(ways[1]))
    return f'{literal(f"{tool.name}(")} {first} ")"'


def _python_value(writer: CallWriter, tool: Tool, key: str, schema: Any) -> str:
    """JSON, or the same in Python's words."""
    types = types_of(tool.parameters, key) or frozenset()
    known = schema if isinstance(schema, dict) else {}
    ways = [writer.lark.json({**_definitions(tool.parameters), **known}, lenient=not tool.strict)]
    if "enum" in known:
        ways += [
            literal(f"'{text}'") for text in _texts_of(known) if text.isprintable() and not set(text) & {"'", "\\"}
        ]
    elif known.keys() <= _ANNOTATED_TYPE:
        ways += [word for kind, words in _PYTHON_WORDS.items() if kind in types for word in words]
    return either(ways)


_ANNOTATED_TYPE = frozenset({"type", "title", "description", "default"})
_PYTHON_WORDS = {"string": [QUOTED], "boolean": ['"True"', '"False"'], "null": ['"None"']}


def _qwen3_coder(writer: CallWriter) -> Calls:
    end = writer.lark.tag("</tool_call>")

    def call(tool: Tool) -> str:
        function = literal(f"\n<function={tool.name}>\n")
        return f'{function} {_parameters(writer, tool)} "</function>\\n" {end}'

    return _calls(writer, "<tool_call>", call)


def _parameters(writer: CallWriter, tool: Tool) -> str:
    """The parameters of a call: those of the schema in their order, or any."""
    lark, end = writer.lark, "\n</parameter>\n"
    properties = tool.parameters.get("properties")
    if not writer.is_bound(tool) or not isinstance(properties, dict):
        return f'("<parameter=" /[^<>\\n]+/ ">\\n" {lark.up_to([end])})*'
    parameters = {}
    for key, schema in properties.items():
        types = types_of(tool.parameters, key)
        texts = _texts_of(schema)
        if types == frozenset({"string"}) and texts:
            value = f"{either([literal(text) for text in texts])} {literal(end)}"
        elif types is not None and "string" in types:
            value = lark.up_to([end])
        else:
            whole = {**_definitions(tool.parameters), **(schema if isinstance(schema, dict) else {})}
            value = f"{lark.json(whole, lenient=not tool.strict)} {literal(end)}"
        parameters[key] = f"{literal(f'<parameter={key}>' + chr(10))} {value}"
    return _in_order(tool, parameters)


def _definitions(schema: dict[str, Any]) -> dict[str, Any]:
    """What references of a part of the schema lead to."""
    return {key: schema[key] for key in ("$defs", "definitions") if key in schema}


def _closed(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema of arguments: an object, without members that it does not mention."""
    closed = {"type": "object", **schema}
    if "properties" in closed and not _FURTHER_MEMBERS & closed.keys():
        closed["additionalProperties"] = False
    return closed


CALL_GRAMMARS: dict[str, Callable[[CallWriter], Calls]] = {
    "hermes": _hermes,
    "qwen3_coder": _qwen3_coder,
    "llama3_json": _llama,
    "lfm2": _lfm2,
    "pythonic": _pythonic,
    "mistral": _mistral,
    "granite": _granite,
    "functionary_v3_1": _function_tags,
    "functionary_v3_2": _recipients,
    "deepseek_v3": _deepseek_v3,
    "deepseek_v31": _deepseek_v31,
    "deepseek_v32": _deepseek_v32,
}
