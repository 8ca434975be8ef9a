"""Writes the tables of fields in the pages on Messages and Responses: `python -m tests.docs.field_tables`.

Owns how the schemas of a protocol become tables. Does not know what a field means.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

from rbee.server.protocols.anthropic import schemas as messages
from rbee.server.protocols.responses import schemas as responses
from tests.docs.generated_part import ROOT, GeneratedPart

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from rbee.server.protocols.parameters import GenerationRequest


class Fields(NamedTuple):
    """The fields of one place in a request."""

    place: str
    taken: Collection[str]
    advisory: Collection[str]
    unsupported: Mapping[str, tuple[Any, ...]]  # each with the values that are accepted


def _of_body(shape: type[GenerationRequest]) -> Collection[str]:
    foreign: dict[str, str | None] = shape.foreign_fields  # type: ignore[attr-defined] # both have it
    return set(shape.__struct_fields__) - foreign.keys()


PAGES = {
    GeneratedPart(ROOT / "docs" / "api-messages.md", "fields"): [
        Fields("the body", _of_body(messages.MessagesRequest), messages.ADVISORY, messages.NEUTRAL),
        Fields("`output_config`", messages.OutputConfig.__struct_fields__, messages.ADVISORY_OUTPUT_CONFIG, {}),
        Fields("a turn", messages.Turn.__struct_fields__, messages.ADVISORY_TURN, messages.NEUTRAL_TURN),
        Fields("a text block", messages.TextBlock.__struct_fields__, messages.ADVISORY_BLOCK, {}),
        Fields("a `tool_use` block", messages.ToolUseBlock.__struct_fields__, messages.ADVISORY_TOOL_BLOCK, {}),
        Fields("a `tool_result` block", messages.ToolResultBlock.__struct_fields__, messages.ADVISORY_TOOL_BLOCK, {}),
        Fields("a `thinking` block", messages.ThinkingBlock.__struct_fields__, messages.ADVISORY_THINKING_BLOCK, {}),
        Fields("a tool", messages.ToolDefinition.__struct_fields__, messages.ADVISORY_TOOL, messages.NEUTRAL_TOOL),
        Fields("`tool_choice`", messages.ToolChoice.__struct_fields__, (), {}),
        Fields("`thinking`", messages.Thinking.__struct_fields__, messages.ADVISORY_THINKING, {}),
    ],
    GeneratedPart(ROOT / "docs" / "api-responses.md", "fields"): [
        Fields(
            "the body",
            _of_body(responses.ResponsesRequest),
            responses.ADVISORY | {"store"},
            responses.NEUTRAL | {name: allowed for name, (allowed, _) in responses.STATEFUL.items()},
        ),
        Fields("`text`", responses.TextConfig.__struct_fields__, responses.ADVISORY_TEXT, {}),
        Fields("`stream_options`", (), responses.ADVISORY_STREAM_OPTIONS, {}),
        Fields("a message", responses.Item.__struct_fields__, responses.ADVISORY_ITEM, {}),
        Fields("a `function_call`", responses.FunctionCall.__struct_fields__, responses.ADVISORY_CALL_ITEM, {}),
        Fields(
            "a `function_call_output`",
            responses.FunctionCallOutput.__struct_fields__,
            responses.ADVISORY_OUTPUT_ITEM,
            {},
        ),
        Fields("a `reasoning` item", responses.ReasoningItem.__struct_fields__, responses.ADVISORY_REASONING_ITEM, {}),
        Fields("a tool", responses.FunctionTool.__struct_fields__, responses.ADVISORY_TOOL, responses.NEUTRAL_TOOL),
        Fields("`tool_choice`", responses.ToolChoice.__struct_fields__, (), {}),
        Fields(
            "`reasoning`",
            responses.Reasoning.__struct_fields__,
            responses.ADVISORY_REASONING,
            responses.NEUTRAL_REASONING,
        ),
        Fields("a part", responses.TextPart.__struct_fields__, responses.ADVISORY_PART, {}),
    ],
}


def table(places: list[Fields]) -> str:
    """A line per place and class."""
    lines = ["| in | class | fields |", "|---|---|---|"]
    for fields in places:
        unsupported = [_with_values(name, fields.unsupported[name]) for name in sorted(fields.unsupported)]
        for kind, names in [
            ("taken", [f"`{name}`" for name in sorted(fields.taken)]),
            ("advisory", [f"`{name}`" for name in sorted(fields.advisory)]),
            ("known and unsupported", unsupported),
        ]:
            if names:
                lines.append(f"| {fields.place} | {kind} | {', '.join(names)} |")
    return "\n".join([*lines, "", ""])


def _with_values(name: str, accepted: tuple[Any, ...]) -> str:
    values = ", ".join(f"`{json.dumps(value)}`" for value in accepted)
    return f"`{name}` ({values})" if values else f"`{name}`"


if __name__ == "__main__":
    for part, places in PAGES.items():
        part.page.write_text(part.filled(table(places)))
