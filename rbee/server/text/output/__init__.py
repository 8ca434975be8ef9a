"""What a model's output says: its answer, its reasoning and its tool calls, told apart while they come.

Owns the formats in which models write these, how they are recognized, and grammars that hold a model to them. Does not
know tokens, requests or protocols.
"""

from __future__ import annotations

from rbee.server.text.output.formats import AUTO, ModelFormat, output_format
from rbee.server.text.output.interface import OutputFormat, OutputKind, OutputParser, ReasoningTags, Span, ToolChoice
from rbee.server.text.output.tools import Tool

__all__ = [
    "AUTO",
    "ModelFormat",
    "OutputFormat",
    "OutputKind",
    "OutputParser",
    "ReasoningTags",
    "Span",
    "Tool",
    "ToolChoice",
    "output_format",
]
