"""The tools of a Responses request: which there are, and which must be called.

Owns where their fields stand. Does not know what bounds hold (`rbee.server.protocols.tools`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from rbee.server.errors import invalid
from rbee.server.protocols.responses.schemas import ADVISORY_TOOL, NEUTRAL_TOOL, FunctionTool, ToolChoice
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
    from rbee.server.protocols.fields import FieldReader
    from rbee.server.protocols.responses.schemas import ResponsesRequest
    from rbee.server.text.tool_use import ToolUse


def read_tool_use(request: ResponsesRequest, reader: FieldReader) -> ToolUse:
    """What the fields tools, tool_choice and parallel_tool_calls ask for."""
    tools = tuple(_read_tool(tool, reader, f"tools[{number}]") for number, tool in enumerate(request.tools))
    check_tools(tools, "tools[{}].name")
    choice = "auto" if request.tool_choice is None else request.tool_choice
    if isinstance(choice, dict):
        mode, names, param = _read_choice(choice, reader)
        return use_of(tools, mode, parallel=request.parallel_tool_calls, names=names, param=param)
    match choice:
        case "none" | "auto" | "required":
            return use_of(tools, choice, parallel=request.parallel_tool_calls)
    message = f"tool_choice must be none, auto, required, or an object that names a tool, not {choice[:64]!r}."
    raise invalid("tool_choice", message)


def _read_tool(given: dict[str, Any], reader: FieldReader, path: str) -> Tool:
    check_function(given.get("type"), f"{path}.type")
    tool = reader.read(given, FunctionTool, NEUTRAL_TOOL, f"{path}.", advisory=ADVISORY_TOOL)
    check_name(tool.name, f"{path}.name")
    check_parameters(tool.parameters, f"{path}.parameters")
    return Tool(tool.name, tool.description, tool.parameters, tool.strict)


def _read_choice(
    given: dict[str, Any], reader: FieldReader
) -> tuple[Literal["none", "auto", "required"], list[str], str]:
    """Whether there must be a call, the names that it may have, and where they stand."""
    path = "tool_choice"
    choice = reader.read(given, ToolChoice, {}, f"{path}.")
    if choice.type != "allowed_tools":
        name = _name(choice, path)
        check_absent(choice.mode, f"{path}.mode", choice.type)
        check_absent(choice.tools, f"{path}.tools", choice.type)
        return "required", [name], f"{path}.name"
    check_absent(choice.name, f"{path}.name", choice.type)
    if choice.tools is None:
        raise invalid(f"{path}.tools", f"{path}.tools is missing.", code="missing_parameter")
    names = []
    for number, tool in enumerate(choice.tools):
        where = f"{path}.tools[{number}]"
        names.append(_name(reader.read(tool, ToolChoice, {}, f"{where}."), where))
    return read_mode(choice.mode, f"{path}.mode"), names, f"{path}.tools"


def _name(choice: ToolChoice, path: str) -> str:
    check_function(choice.type, f"{path}.type")
    if choice.name is None:
        raise invalid(f"{path}.name", f"{path}.name is missing.", code="missing_parameter")
    return choice.name
