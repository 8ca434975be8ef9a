"""The shapes of Responses requests: their fields, and which of the others are advisory or mean nothing.

Owns names and types, nothing that depends on a model. Does not know how a field in none of the lists is refused
(`rbee.server.protocols.fields`).
"""

from __future__ import annotations

from typing import Any, ClassVar

import msgspec

from rbee.server.protocols.parameters import ADVISORY_OF_PEERS, GenerationRequest

LOGPROBS = "message.output_text.logprobs"  # OpenAI's name of them in `include`


class ResponsesRequest(GenerationRequest, frozen=True, kw_only=True):
    """The body of POST /v1/responses: OpenAI's fields, and the sampling parameters that all protocols have."""

    prompt_field: ClassVar[str] = "input"
    foreign_fields: ClassVar[dict[str, str | None]] = {
        "best_of": None,
        "max_tokens": "max_output_tokens",
        "n": None,
        "timings": None,
    }

    input: str | list[dict[str, Any]]
    instructions: str | None = None
    max_output_tokens: int | None = None
    text: dict[str, Any] | None = None
    include: list[str] = msgspec.field(default_factory=list)
    tools: list[dict[str, Any]] = msgspec.field(default_factory=list)
    tool_choice: str | dict[str, Any] | None = None  # None: "auto" with tools, else "none"
    parallel_tool_calls: bool = True
    reasoning: dict[str, Any] | None = None
    top_logprobs: int = 0
    chat_template_kwargs: dict[str, Any] | None = None

    @property
    def asked_logprobs(self) -> tuple[str, int | None]:
        asked = self.top_logprobs or LOGPROBS in self.include
        return "top_logprobs", self.top_logprobs if asked else None


class Item(msgspec.Struct, frozen=True, kw_only=True):
    """A message of the input."""

    role: str
    content: str | list[dict[str, Any]]
    type: str = "message"


class TextPart(msgspec.Struct, frozen=True, kw_only=True):
    """A part of a message's content; only text can be read."""

    type: str
    text: str


class FunctionCall(msgspec.Struct, frozen=True, kw_only=True):
    """A call of an earlier answer, as an item of the input."""

    type: str
    call_id: str
    name: str
    arguments: str  # JSON text


class FunctionCallOutput(msgspec.Struct, frozen=True, kw_only=True):
    """The result of a call, as an item of the input."""

    type: str
    call_id: str
    output: str | list[dict[str, Any]]


class ReasoningItem(msgspec.Struct, frozen=True, kw_only=True):
    """What the model thought in an earlier answer, as an item of the input."""

    type: str
    summary: list[dict[str, Any]] = msgspec.field(default_factory=list)
    content: list[dict[str, Any]] = msgspec.field(default_factory=list)  # comes before the summary


class FunctionTool(msgspec.Struct, frozen=True, kw_only=True):
    """A tool of the type function."""

    type: str
    name: str
    description: str | None = None
    parameters: dict[str, Any] = msgspec.field(default_factory=dict)
    strict: bool = False


class ToolChoice(msgspec.Struct, frozen=True, kw_only=True):
    """A tool_choice that is an object: a function, or some of the tools."""

    type: str
    name: str | None = None
    mode: str | None = None
    tools: list[dict[str, Any]] | None = None


class Reasoning(msgspec.Struct, frozen=True, kw_only=True):
    """How much the model thinks."""

    effort: str | None = None


class TextConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The form of the text of an answer."""

    format: dict[str, Any] | None = None


class StreamOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What else a stream carries: nothing yet."""


# Fields that cannot change what the answer is. They are accepted, and named in the Warning header.
ADVISORY = ADVISORY_OF_PEERS | frozenset(
    {
        "max_tool_calls",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "safety_identifier",
        "service_tier",
    }
)
ADVISORY_TEXT = frozenset({"verbosity"})
ADVISORY_STREAM_OPTIONS = frozenset({"include_obfuscation"})
# The same in the items and parts that clients send back as they got them.
ADVISORY_ITEM = frozenset({"id", "phase", "provider_specific_fields", "status", "timestamp"})
ADVISORY_CALL_ITEM = ADVISORY_ITEM | {"async", "caller", "namespace", "parsed_arguments"}
ADVISORY_OUTPUT_ITEM = ADVISORY_ITEM | {"caller", "name", "namespace"}
ADVISORY_REASONING_ITEM = ADVISORY_ITEM | {"encrypted_content"}
ADVISORY_REASONING = frozenset({"generate_summary", "summary"})
ADVISORY_TOOL = frozenset({"cache_control"})
ADVISORY_PART = frozenset({"annotations", "cache_control", "logprobs", "prompt_cache_breakpoint"})

# What `include` may name. No answer has encrypted reasoning, so there is none to include.
INCLUDABLE = frozenset({LOGPROBS, "reasoning.encrypted_content"})

# Fields that need a state, with the only values that need none, and what to do instead.
STATEFUL: dict[str, tuple[tuple[Any, ...], str]] = {
    "background": ((False,), "wait for the answer, or stream it"),
    "conversation": ((), "send all of it as input"),
    "previous_response_id": ((), "send its input and output items as input again"),
    "prompt": ((), "send its text as instructions and input"),
}

# Fields that rbee does not support yet, each with the values that ask for nothing. These and null are accepted; any
# other value is refused by name.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "context_management": ([],),
    "image": (),
    "moderation": (),
    "truncation": ("disabled",),
}
# What --lenient ignores of these: the answer is of the same kind without it.
DISPENSABLE = frozenset({"context_management", "moderation", "truncation"})
NEUTRAL_TOOL: dict[str, tuple[Any, ...]] = {
    "allowed_callers": (["direct"],),
    "async": (False,),
    "defer_loading": (False,),
    "output_schema": (),
}
NEUTRAL_REASONING: dict[str, tuple[Any, ...]] = {"context": (), "mode": ()}
