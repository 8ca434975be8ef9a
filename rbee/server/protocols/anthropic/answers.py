"""The shapes of Anthropic's answers, and of the events of its stream, for /openapi.json.

Owns names and types. The dialect writes the JSON, the deltas natively; tests hold both to each other, key by key.
"""

from __future__ import annotations

from typing import Any, Literal

from rbee.server.protocols.openapi import Shape

# The last one is ours.
StopReason = Literal["end_turn", "max_tokens", "model_context_window_exceeded", "stop_sequence", "deadline"]


class AnthropicText(Shape, tag_field="type", tag="text"):
    """A block of an answer."""

    text: str


class AnthropicUsage(Shape):
    """Tokens; those of the prompt are input_tokens and cache_read_input_tokens together."""

    input_tokens: int
    cache_creation_input_tokens: int
    cache_read_input_tokens: int
    output_tokens: int


class AnthropicMessage(Shape, tag_field="type", tag="message"):
    """The answer to POST /v1/messages."""

    id: str
    role: Literal["assistant"]
    model: str
    content: list[AnthropicText]
    stop_reason: StopReason | None
    stop_sequence: str | None
    usage: AnthropicUsage


class TokenCount(Shape):
    """The answer to POST /v1/messages/count_tokens."""

    input_tokens: int


class MessageStart(Shape, tag_field="type", tag="message_start"):
    """The first event of a stream: the message without its text."""

    message: AnthropicMessage


class ContentBlockStart(Shape, tag_field="type", tag="content_block_start"):
    """A block begins."""

    index: int
    content_block: AnthropicText


class Ping(Shape, tag_field="type", tag="ping"):
    """The stream is alive."""


class TextDelta(Shape, tag_field="type", tag="text_delta"):
    """More of a block's text."""

    text: str


class ContentBlockDelta(Shape, tag_field="type", tag="content_block_delta"):
    """A block goes on."""

    index: int
    delta: TextDelta


class ContentBlockStop(Shape, tag_field="type", tag="content_block_stop"):
    """A block is whole."""

    index: int


class StopDelta(Shape):
    """Why a message ends."""

    stop_reason: StopReason
    stop_sequence: str | None


class MessageDelta(Shape, tag_field="type", tag="message_delta"):
    """The message ends."""

    delta: StopDelta
    usage: AnthropicUsage


class MessageStop(Shape, tag_field="type", tag="message_stop"):
    """The last event."""


STREAMED: tuple[Any, ...] = (
    MessageStart,
    ContentBlockStart,
    Ping,
    ContentBlockDelta,
    ContentBlockStop,
    MessageDelta,
    MessageStop,
)
