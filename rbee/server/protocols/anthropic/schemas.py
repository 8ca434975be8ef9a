"""The shapes of Anthropic's requests: their fields, and which of the others are advisory or mean nothing.

Owns names and types, nothing that depends on a model. Does not know how a field in none of the lists is refused
(`rbee.server.protocols.fields`).
"""

from __future__ import annotations

from typing import Any, ClassVar

import msgspec

from rbee.server.protocols.parameters import GenerationRequest


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
    output_config: dict[str, Any] | None = None
    output_format: dict[str, Any] | None = None  # what stands as `format` in the former, as its beta had it


class OutputConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What the answer must be."""

    format: dict[str, Any] | None = None


class CountRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The body of POST /v1/messages/count_tokens."""

    model: str | None = None
    messages: list[dict[str, Any]]
    system: str | list[dict[str, Any]] = ""


class Turn(msgspec.Struct, frozen=True, kw_only=True):
    """One message of a conversation."""

    role: str
    content: str | list[dict[str, Any]]


class TextBlock(msgspec.Struct, frozen=True, kw_only=True):
    """A block of a message's content; only text can be read."""

    type: str
    text: str


# Fields that cannot change what the answer is. They are accepted, and named in the Warning header.
ADVISORY = frozenset(
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
    "thinking": ({"type": "disabled"},),
    "tool_choice": ({"type": "auto"}, {"type": "none"}),
    "tools": ([],),
}
# What --lenient ignores of these: the answer is of the same kind without it.
DISPENSABLE = frozenset({"compaction", "context_management", "fallbacks", "speed", "thinking"})
NEUTRAL_TURN: dict[str, tuple[Any, ...]] = {"type": ("message",)}
