"""The tools of an OpenAI chat request: which there are, which must be called, and the calls of earlier turns.

Owns where their fields stand. Does not know what bounds hold (`rbee.server.protocols.tools`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from rbee.server.errors import invalid
from rbee.server.protocols.openai.schemas import (
    ADVISORY_CALL,
    ADVISORY_CALLED,
    ADVISORY_TOOL,
    FORMER_CHAT,
    AllowedTools,
    CalledFunction,
    Function,
    FunctionCall,
    FunctionTool,
    NamedFunction,
    ToolChoice,
)
from rbee.server.protocols.tools import (
    check_absent,
    check_function,
    check_name,
    check_parameters,
    check_tools,
    read_mode,
    use_of,
)
from rbee.server.text.output.tools import Tool

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rbee.server.protocols.fields import FieldReader
    from rbee.server.protocols.tools import Calls
    from rbee.server.text.tool_use import ToolCall, ToolUse

_CHOICES = ("none", "auto", "required")
_NOTHING: tuple[Any, ...] = ([], "none", "auto")  # values of former fields that ask for nothing


def read_tools(given: list[dict[str, Any]], reader: FieldReader) -> tuple[Tool, ...]:
    """The functions that the model may call."""
    tools = tuple(_read_tool(tool, reader, f"tools[{number}]") for number, tool in enumerate(given))
    check_tools(tools, "tools[{}].function.name")
    return tools


def read_tool_use(
    given: list[dict[str, Any]], choice: str | dict[str, Any] | None, reader: FieldReader, *, parallel: bool
) -> ToolUse:
    """What the fields tools, tool_choice and parallel_tool_calls ask for."""
    tools = read_tools(given, reader)
    if choice is None:
        choice = "auto"
    if isinstance(choice, dict):
        mode, names, param = _read_choice(choice, reader)
        return use_of(tools, mode, parallel=parallel, names=names, param=param)
    match choice:
        case "none" | "auto" | "required":
            return use_of(tools, choice, parallel=parallel)
    allowed = ", ".join(_CHOICES)
    raise invalid(
        "tool_choice", f"tool_choice must be one of {allowed}, or an object that names a tool, not {choice[:64]!r}."
    )


def read_calls(given: list[dict[str, Any]], reader: FieldReader, path: str, calls: Calls) -> list[ToolCall]:
    """The calls of an assistant's message, which are among `calls` then; `path` is where they stand."""
    return [_read_call(call, reader, f"{path}[{number}]", calls) for number, call in enumerate(given)]


def refuse_former(given: Mapping[str, Any], former: Mapping[str, str] = FORMER_CHAT, path: str = "") -> None:
    """Raise Refusal for a field that OpenAI has replaced, with what to send instead."""
    for name, remedy in former.items():
        if given.get(name) is not None and given[name] not in _NOTHING:
            message = f"{path}{name} is a former field of OpenAI's, which is not supported; {remedy}."
            raise invalid(path + name, message, code="unsupported_parameter")


def _read_tool(given: dict[str, Any], reader: FieldReader, path: str) -> Tool:
    check_function(given.get("type"), f"{path}.type")
    tool = reader.read(given, FunctionTool, {}, f"{path}.", advisory=ADVISORY_TOOL)
    path += ".function"
    function = reader.read(tool.function, Function, {}, f"{path}.", advisory=ADVISORY_TOOL)
    check_name(function.name, f"{path}.name")
    check_parameters(function.parameters, f"{path}.parameters")
    return Tool(function.name, function.description, function.parameters, function.strict)


def _read_choice(
    given: dict[str, Any], reader: FieldReader
) -> tuple[Literal["none", "auto", "required"], list[str], str]:
    """Whether there must be a call, the names that it may have, and where they stand."""
    path = "tool_choice"
    choice = reader.read(given, ToolChoice, {}, f"{path}.")
    if choice.type != "allowed_tools":
        check_function(choice.type, f"{path}.type")
        check_absent(choice.allowed_tools, f"{path}.allowed_tools", choice.type)
        return "required", [_read_name(choice.function, reader, path)], f"{path}.function.name"
    check_absent(choice.function, f"{path}.function", choice.type)
    path += ".allowed_tools"
    if choice.allowed_tools is None:
        raise invalid(path, f"{path} is missing.", code="missing_parameter")
    allowed = reader.read(choice.allowed_tools, AllowedTools, {}, f"{path}.")
    names = []
    for number, tool in enumerate(allowed.tools):
        where = f"{path}.tools[{number}]"
        named = reader.read(tool, ToolChoice, {}, f"{where}.")
        check_function(named.type, f"{where}.type")
        names.append(_read_name(named.function, reader, where))
    return read_mode(allowed.mode, f"{path}.mode"), names, f"{path}.tools"


def _read_name(given: dict[str, Any] | None, reader: FieldReader, path: str) -> str:
    if given is None:
        raise invalid(f"{path}.function", f"{path}.function is missing.", code="missing_parameter")
    return reader.read(given, NamedFunction, {}, f"{path}.function.").name


def _read_call(given: dict[str, Any], reader: FieldReader, path: str, calls: Calls) -> ToolCall:
    check_function(given.get("type"), f"{path}.type")
    call = reader.read(given, FunctionCall, {}, f"{path}.", advisory=ADVISORY_CALL)
    function = reader.read(call.function, CalledFunction, {}, f"{path}.function.", advisory=ADVISORY_CALLED)
    return calls.read(call.id, function.name, function.arguments, path, ("id", "function.name", "function.arguments"))
