"""The shapes of Anthropic's requests: their fields, and which of the others are advisory or mean nothing.

Owns names and types, nothing that depends on a model. Does not know how a field in none of the lists is refused
(`rbee.server.protocols.fields`).
"""

from __future__ import annotations

from typing import Any, ClassVar

import msgspec

from rbee.server.protocols.parameters import ADVISORY_OF_PEERS, GenerationRequest


class MessagesRequest(GenerationRequest, frozen=True, kw_only=True):
    """The body of POST /v1/messages: Anthropic's fields, and the sampling parameters that all protocols have."""

    prompt_field: ClassVar[str] = "messages"
    foreign_fields: ClassVar[dict[str, str | None]] = {
        "best_of": None,
        "n": None,
        "stop": "stop_sequences",
        "stream_options": None,
        "timings": None,
        "user": "metadata",
    }

    messages: list[dict[str, Any]]
    max_tokens: int  # Anthropic's is not optional
    system: str | list[dict[str, Any]] = ""
    stop_sequences: list[str] = msgspec.field(default_factory=list)
    tools: list[dict[str, Any]] = msgspec.field(default_factory=list)
    tool_choice: dict[str, Any] | None = None  # None: {"type": "auto"} with tools
    thinking: dict[str, Any] | None = None
    output_config: dict[str, Any] | None = None
    output_format: dict[str, Any] | None = None  # what stands as `format` in the former, as its beta had it
    chat_template_kwargs: dict[str, Any] | None = None


class OutputConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What the answer must be."""

    format: dict[str, Any] | None = None


class CountRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The body of POST /v1/messages/count_tokens."""

    model: str | None = None
    messages: list[dict[str, Any]]
    system: str | list[dict[str, Any]] = ""
    tools: list[dict[str, Any]] = msgspec.field(default_factory=list)
    tool_choice: dict[str, Any] | None = None
    thinking: dict[str, Any] | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class Turn(msgspec.Struct, frozen=True, kw_only=True):
    """One message of a conversation."""

    role: str
    content: str | list[dict[str, Any]]


class TextBlock(msgspec.Struct, frozen=True, kw_only=True):
    """A block of text."""

    type: str
    text: str


class ToolUseBlock(msgspec.Struct, frozen=True, kw_only=True):
    """A call in a turn of the assistant."""

    type: str
    id: str
    name: str
    input: dict[str, Any]


class ToolResultBlock(msgspec.Struct, frozen=True, kw_only=True):
    """The result of a call, in the user's turn behind it."""

    type: str
    tool_use_id: str
    content: str | list[dict[str, Any]] = ""
    is_error: bool = False


class ThinkingBlock(msgspec.Struct, frozen=True, kw_only=True):
    """What the model thought in a turn."""

    type: str
    thinking: str


class RedactedThinkingBlock(msgspec.Struct, frozen=True, kw_only=True):
    """The same, which only Anthropic can read."""

    type: str


class ToolDefinition(msgspec.Struct, frozen=True, kw_only=True):
    """One of the tools."""

    name: str
    input_schema: dict[str, Any]
    type: str = "custom"
    description: str | None = None
    strict: bool = False


class ToolChoice(msgspec.Struct, frozen=True, kw_only=True):
    """Whether a tool is called."""

    type: str
    name: str | None = None
    disable_parallel_tool_use: bool = False


class Thinking(msgspec.Struct, frozen=True, kw_only=True):
    """Whether the model thinks before it answers."""

    type: str
    budget_tokens: int | None = None  # that it may think


# Fields that cannot change what the answer is. They are accepted, and named in the Warning header.
ADVISORY = ADVISORY_OF_PEERS | frozenset(
    {
        "billing_policy",
        "cache_control",
        "diagnostics",
        "inference_geo",
        "service_tier",
        "user_profile_id",
        "workspace_id",
    }
)
# The same in the messages that clients send back as they got them.
ADVISORY_TURN = frozenset(
    {
        "cache_control",
        "container",
        "diagnostics",
        "id",
        "model",
        "provider_specific_fields",
        "reasoning",
        "reasoning_content",
        "stop_details",
        "stop_reason",
        "stop_sequence",
        "timestamp",
        "usage",
    }
)
ADVISORY_OUTPUT_CONFIG = frozenset({"effort"})
ADVISORY_BLOCK = frozenset({"cache_control", "citations", "id", "parsed_output"})
ADVISORY_TOOL_BLOCK = frozenset({"cache_control", "caller", "parsed_output", "toolset_name"})
ADVISORY_THINKING_BLOCK = frozenset({"cache_control", "data", "signature"})
# And in definitions of tools, and in `thinking`.
ADVISORY_TOOL = frozenset({"cache_control", "eager_input_streaming"})
ADVISORY_THINKING = frozenset({"display"})

# Fields that rbee does not support yet, each with the values that ask for nothing. These and null are accepted; any
# other value is refused by name.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "compaction": (),
    "container": (),
    "context_management": ({}, {"edits": []}),
    "fallbacks": ([],),
    "mcp_servers": ([],),
    "speed": ("standard",),
    "thread": (),
}
NEUTRAL_TOOL: dict[str, tuple[Any, ...]] = {
    "allowed_callers": (["direct"],),
    "defer_loading": (False,),
    "input_examples": ([],),
}
# What --lenient ignores of these: the answer is of the same kind without it.
DISPENSABLE = frozenset({"compaction", "context_management", "fallbacks", "speed"})
NEUTRAL_TURN: dict[str, tuple[Any, ...]] = {"type": ("message",)}
