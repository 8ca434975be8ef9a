"""How a request uses tools: those that it offers, which of them its answer calls, and the calls that were made before.

Owns these values, in which all protocols agree. Does not know a protocol's fields or a template's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:
    from rbee.server.text.output.tools import Tool

ToolChoice = Literal["none", "auto", "required"]


@dataclass(frozen=True)
class ToolUse:
    """What an answer may, or must, call.

    A tool that is asked for by name is "required", and the only one of `tools`.
    """

    offered: tuple[Tool, ...] = ()  # the prompt shows them
    tools: tuple[Tool, ...] = ()  # the answer may call them: those offered, or some of them
    choice: ToolChoice = "none"
    parallel: bool = True  # there may be several calls in one answer


NO_TOOLS = ToolUse()


class ToolCall(NamedTuple):
    """A call in an earlier answer. Templates differ in which form of the arguments they take."""

    id: str
    name: str
    arguments: dict[str, Any]
    text: str  # the arguments as JSON, as the client has it
