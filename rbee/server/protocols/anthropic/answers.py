"""The shapes of Anthropic's answers, and of the events of its stream, for /openapi.json.

Owns names and types. The dialect writes the JSON, the deltas natively; tests hold both to each other, key by key.
"""

from __future__ import annotations

from typing import Any, Literal

from msgspec import UNSET, UnsetType

from rbee.server.protocols.openapi import Shape

# The last one is ours.
StopReason = Literal["end_turn", "max_tokens", "model_context_window_exceeded", "stop_sequence", "tool_use", "deadline"]


class AnthropicText(Shape, tag_field="type", tag="text"):
    """A block of text."""

    text: str


class AnthropicThinking(Shape, tag_field="type", tag="thinking"):
    """A block of reasoning; nobody signs it."""

    thinking: str
    signature: str


class AnthropicToolUse(Shape, tag_field="type", tag="tool_use"):
    """A call of a tool; what is no JSON stands as INVALID_JSON in its input."""

    id: str
    name: str
    input: dict[str, Any]


AnthropicBlock = AnthropicText | AnthropicThinking | AnthropicToolUse


class AnthropicOutputDetails(Shape):
    """What of the output is no answer."""

    thinking_tokens: int


class AnthropicUsage(Shape):
    """Tokens; those of the prompt are input_tokens and cache_read_input_tokens together."""

    input_tokens: int
    cache_creation_input_tokens: int
    cache_read_input_tokens: int
    output_tokens: int
    output_tokens_details: AnthropicOutputDetails | UnsetType = UNSET  # of outputs that are read


class AnthropicMessage(Shape, tag_field="type", tag="message"):
    """The answer to POST /v1/messages."""

    id: str
    role: Literal["assistant"]
    model: str
    content: list[AnthropicBlock]
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
    content_block: AnthropicBlock


class Ping(Shape, tag_field="type", tag="ping"):
    """The stream is alive."""


class TextDelta(Shape, tag_field="type", tag="text_delta"):
    """More of a block's text."""

    text: str


class ThinkingDelta(Shape, tag_field="type", tag="thinking_delta"):
    """More of a block's reasoning."""

    thinking: str


class SignatureDelta(Shape, tag_field="type", tag="signature_delta"):
    """The signature of a block of reasoning."""

    signature: str


class InputJsonDelta(Shape, tag_field="type", tag="input_json_delta"):
    """More of a call's input, which is JSON as the model wrote it."""

    partial_json: str


class ContentBlockDelta(Shape, tag_field="type", tag="content_block_delta"):
    """A block goes on."""

    index: int
    delta: TextDelta | ThinkingDelta | SignatureDelta | InputJsonDelta


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
