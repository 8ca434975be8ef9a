"""The tools of an Anthropic request: which there are, which must be called, and whether the model thinks.

Owns where their fields stand. Does not know what bounds hold (`rbee.server.protocols.tools`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from rbee.server.errors import invalid
from rbee.server.protocols.anthropic.schemas import (
    ADVISORY_THINKING,
    ADVISORY_TOOL,
    NEUTRAL_TOOL,
    Thinking,
    ToolChoice,
    ToolDefinition,
)
from rbee.server.protocols.reasoning import Sent, reasoning_variables
from rbee.server.protocols.tools import check_absent, check_name, check_parameters, check_tools, use_of
from rbee.server.text.output.tools import Tool

if TYPE_CHECKING:
    from rbee.server.protocols.anthropic.schemas import CountRequest, MessagesRequest
    from rbee.server.protocols.fields import FieldReader
    from rbee.server.text.chat_template import ChatTemplate
    from rbee.server.text.tool_use import ToolUse

# Whether the model thinks. With "adaptive" it decides itself, as far as its template lets it.
_THINKING = {"enabled": True, "adaptive": True, "disabled": False}
_BUDGET = "thinking.budget_tokens"


def read_tool_use(request: MessagesRequest | CountRequest, reader: FieldReader) -> ToolUse:
    """What the fields tools and tool_choice ask for."""
    tools = tuple(_read_tool(tool, reader, f"tools[{number}]") for number, tool in enumerate(request.tools))
    check_tools(tools, "tools[{}].name")
    if request.tool_choice is None:
        return use_of(tools, "auto", parallel=True)
    choice = reader.read(request.tool_choice, ToolChoice, {}, "tool_choice.")
    parallel = not choice.disable_parallel_tool_use
    if choice.type != "tool":
        check_absent(choice.name, "tool_choice.name", choice.type)
    match choice.type:
        case "none" | "auto":
            return use_of(tools, choice.type, parallel=parallel)
        case "any":
            return use_of(tools, "required", parallel=parallel)
        case "tool":
            param = "tool_choice.name"
            if choice.name is None:
                raise invalid(param, f"{param} is missing.", code="missing_parameter")
            return use_of(tools, "required", parallel=parallel, names=[choice.name], param=param)
    message = f"tool_choice.type must be auto, any, tool or none, not {choice.type[:64]!r}."
    raise invalid("tool_choice.type", message)


def read_thinking(request: MessagesRequest | CountRequest, reader: FieldReader) -> Thinking | None:
    """What `thinking` asks for. A budget beside a type that has none is not followed."""
    if request.thinking is None:
        return None
    thinking = reader.read(request.thinking, Thinking, {}, "thinking.", advisory=ADVISORY_THINKING)
    if thinking.type not in _THINKING:
        message = f"thinking.type must be one of {', '.join(_THINKING)}, not {thinking.type[:64]!r}."
        raise invalid("thinking.type", message)
    if thinking.type != "enabled" and thinking.budget_tokens is not None:
        reader.ignored.append(_BUDGET)
        return msgspec.structs.replace(thinking, budget_tokens=None)
    return thinking


def thinking_budget(thinking: Thinking | None) -> Sent[int]:
    """How many tokens it may have."""
    return Sent(None if thinking is None else thinking.budget_tokens, _BUDGET)


def thinking_variables(thinking: Thinking | None, template: ChatTemplate | None, reader: FieldReader) -> dict[str, Any]:
    """What of it the chat template gets. A model that never thinks follows "disabled" too."""
    if thinking is None:
        return {}
    enable = _THINKING[thinking.type]
    if not enable and (template is None or template.thinking_switch is None):
        return {}
    return reasoning_variables(template, reader.ignored, enable=enable, enable_field="thinking")


def _read_tool(given: dict[str, Any], reader: FieldReader, path: str) -> Tool:
    kind = given.get("type")
    if kind not in (None, "custom"):
        param = f"{path}.type"
        message = f"{param} is {str(kind)[:64]!r}, a tool of Anthropic's own; describe it by name and input_schema."
        raise invalid(param, message, code="unsupported_parameter")
    tool = reader.read(given, ToolDefinition, NEUTRAL_TOOL, f"{path}.", advisory=ADVISORY_TOOL)
    check_name(tool.name, f"{path}.name")
    check_parameters(tool.input_schema, f"{path}.input_schema")
    return Tool(tool.name, tool.description, tool.input_schema, tool.strict)
