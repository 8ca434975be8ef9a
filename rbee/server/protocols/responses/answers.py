"""The shapes of the response object, and of the typed events of its stream, for /openapi.json.

Owns names and types. The dialect writes the JSON, the deltas natively; tests hold both to each other, key by key.
"""

from __future__ import annotations

from typing import Any, Literal

from msgspec import UNSET, UnsetType

from rbee.server.protocols.openapi import Shape
from rbee.server.protocols.token_logprobs import ListedToken  # noqa: TC001 - msgspec reads it

ItemStatus = Literal["in_progress", "completed", "incomplete"]


class OutputText(Shape, tag_field="type", tag="output_text"):
    """A part of a message."""

    text: str
    annotations: list[None]  # always empty
    logprobs: list[ListedToken]  # empty unless they are asked for


class OutputMessage(Shape, tag_field="type", tag="message"):
    """An item of the output."""

    id: str
    status: ItemStatus
    role: Literal["assistant"]
    content: list[OutputText]


class ReasoningText(Shape, tag_field="type", tag="reasoning_text"):
    """The part of a reasoning item."""

    text: str


class ReasoningItem(Shape, tag_field="type", tag="reasoning"):
    """An item of the output: what the model thought."""

    id: str
    status: ItemStatus
    summary: list[None]  # always empty
    content: list[ReasoningText]


class FunctionCall(Shape, tag_field="type", tag="function_call"):
    """An item of the output: a call, with its arguments in JSON as the model wrote it."""

    id: str
    status: ItemStatus
    call_id: str
    name: str
    arguments: str


OutputItem = OutputMessage | ReasoningItem | FunctionCall


class InputTokensDetails(Shape):
    """What the prefix cache saved."""

    cached_tokens: int
    cache_write_tokens: int


class OutputTokensDetails(Shape):
    """What of the output is not shown."""

    reasoning_tokens: int


class ResponsesUsage(Shape):
    """Tokens of a response."""

    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class ResponseFailure(Shape):
    """Why a response failed."""

    code: Literal["server_error"]
    message: str


class IncompleteDetails(Shape):
    """Why a response is not complete; the second word is ours."""

    reason: Literal["max_output_tokens", "deadline"]


class ReasoningConfig(Shape):
    """How much a model may think, as the request says; null leaves it to the model."""

    effort: str | None
    summary: str | None


class AnyText(Shape, tag_field="type", tag="text"):
    """The answer may be any text."""


class JsonObjectText(Shape, tag_field="type", tag="json_object"):
    """The answer is a JSON object."""


class JsonSchemaText(Shape, tag_field="type", tag="json_schema"):
    """The answer is valid under a JSON schema."""

    schema: dict[str, Any]
    name: str | UnsetType | None = UNSET
    description: str | UnsetType | None = UNSET
    strict: bool | UnsetType | None = UNSET


class TextForm(Shape):
    """What was asked for of the answer's text."""

    format: AnyText | JsonObjectText | JsonSchemaText


class ResponseObject(Shape):
    """The answer to POST /v1/responses; it repeats what was asked for."""

    id: str
    object: Literal["response"]
    created_at: int
    status: Literal["in_progress", "completed", "incomplete", "failed"]
    background: Literal[False]
    completed_at: int | None
    error: ResponseFailure | None
    incomplete_details: IncompleteDetails | None
    instructions: str | None
    max_output_tokens: int | None
    max_tool_calls: None
    metadata: dict[str, Any]
    model: str
    output: list[OutputItem]
    parallel_tool_calls: bool
    previous_response_id: None
    prompt_cache_key: None
    reasoning: ReasoningConfig
    safety_identifier: None
    service_tier: Literal["default"]
    store: Literal[False]
    temperature: float
    text: TextForm
    tool_choice: str | dict[str, Any]
    tools: list[dict[str, Any]]
    top_logprobs: int
    top_p: float
    truncation: Literal["disabled"]
    usage: ResponsesUsage | None
    user: str | None


class _Event(Shape, tag_field="type"):
    """What all events have."""

    sequence_number: int


class _OfResponse(_Event):
    """Those that have the response as it is."""

    response: ResponseObject


class ResponseCreated(_OfResponse, tag="response.created"):
    """The first event."""


class ResponseInProgress(_OfResponse, tag="response.in_progress"):
    """The second event."""


class ResponseCompleted(_OfResponse, tag="response.completed"):
    """The last event of a response that the model ended."""


class ResponseIncomplete(_OfResponse, tag="response.incomplete"):
    """The last event of one that it did not end."""


class ResponseFailed(_OfResponse, tag="response.failed"):
    """The last event of one that failed."""


class OutputItemAdded(_Event, tag="response.output_item.added"):
    """An item begins."""

    output_index: int
    item: OutputItem


class OutputItemDone(_Event, tag="response.output_item.done"):
    """An item is whole."""

    output_index: int
    item: OutputItem


class _OfPart(_Event):
    """Those of a part of a message."""

    item_id: str
    output_index: int
    content_index: int


class ContentPartAdded(_OfPart, tag="response.content_part.added"):
    """A part begins."""

    part: OutputText | ReasoningText


class ContentPartDone(_OfPart, tag="response.content_part.done"):
    """A part is whole."""

    part: OutputText | ReasoningText


class OutputTextDelta(_OfPart, tag="response.output_text.delta"):
    """More of a part's text."""

    delta: str
    logprobs: list[ListedToken]


class OutputTextDone(_OfPart, tag="response.output_text.done"):
    """All of a part's text."""

    text: str
    logprobs: list[ListedToken]


class ReasoningTextDelta(_OfPart, tag="response.reasoning_text.delta"):
    """More of the reasoning."""

    delta: str


class ReasoningTextDone(_OfPart, tag="response.reasoning_text.done"):
    """All of the reasoning."""

    text: str


class _OfCall(_Event):
    """Those of a call."""

    item_id: str
    output_index: int


class FunctionCallArgumentsDelta(_OfCall, tag="response.function_call_arguments.delta"):
    """More of a call's arguments."""

    delta: str


class FunctionCallArgumentsDone(_OfCall, tag="response.function_call_arguments.done"):
    """All of a call's arguments."""

    name: str
    arguments: str


STREAMED: tuple[Any, ...] = (
    ResponseCreated,
    ResponseInProgress,
    OutputItemAdded,
    ContentPartAdded,
    OutputTextDelta,
    OutputTextDone,
    ReasoningTextDelta,
    ReasoningTextDone,
    FunctionCallArgumentsDelta,
    FunctionCallArgumentsDone,
    ContentPartDone,
    OutputItemDone,
    ResponseCompleted,
    ResponseIncomplete,
    ResponseFailed,
)
