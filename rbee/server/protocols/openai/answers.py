"""The shapes of OpenAI's answers, and of the events of its streams, for /openapi.json.

Owns names and types. The dialects write the JSON, much of it natively; tests hold both to each other, key by key.
"""

from __future__ import annotations

from typing import Any, Literal

from msgspec import UNSET, UnsetType

from rbee.server.protocols.openapi import ErrorEnvelope, Shape
from rbee.server.protocols.token_logprobs import ListedToken  # noqa: TC001 - msgspec reads it

FinishReason = Literal["stop", "length", "deadline"]  # the last one is ours
ChatFinishReason = Literal["stop", "length", "tool_calls", "deadline"]


class ChatLogprobs(Shape):
    """The tokens of a choice, or of a chunk, of a chat."""

    content: list[ListedToken]


class CompletionLogprobs(Shape):
    """The same of a completion, as parallel lists."""

    text_offset: list[int]
    token_logprobs: list[float | None]
    tokens: list[str]
    top_logprobs: list[dict[str, float] | None]


class PromptTokenLogprob(Shape):
    """A token at a place of the prompt; `rank` counts from 1 over the whole vocabulary."""

    logprob: float
    rank: int
    decoded_token: str


PromptLogprobs = list[dict[str, PromptTokenLogprob] | None] | None


class PromptTokensDetails(Shape):
    """What the prefix cache saved."""

    cached_tokens: int


class CompletionTokensDetails(Shape):
    """What of the completion is no answer."""

    reasoning_tokens: int


class Usage(Shape):
    """Tokens of all choices together; each prompt counts once. The last member comes with outputs that are read."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails | UnsetType = UNSET
    completion_tokens_details: CompletionTokensDetails | UnsetType = UNSET


class Timings(Shape):
    """How long a generation took, in ms and in tokens; what is not known is left out."""

    cache_n: int | UnsetType = UNSET
    prompt_n: int | UnsetType = UNSET
    queue_ms: float | UnsetType = UNSET
    prompt_ms: float | UnsetType = UNSET
    ttft_ms: float | UnsetType = UNSET
    predicted_n: int | UnsetType = UNSET
    predicted_ms: float | UnsetType = UNSET
    predicted_per_second: float | UnsetType = UNSET
    itl_p50_ms: float | UnsetType = UNSET
    itl_p99_ms: float | UnsetType = UNSET


class _Answer(Shape, kw_only=True):
    """What all answers and chunks have."""

    id: str
    created: int
    model: str
    system_fingerprint: str | UnsetType = UNSET
    timings: Timings | UnsetType = UNSET


class _Chunk(_Answer, kw_only=True):
    """An event of a stream; the last one may have no choices."""

    usage: Usage | UnsetType | None = UNSET
    timing: CommitTime | UnsetType = UNSET


class CommitTime(Shape):
    """When the engine committed a chunk's token, CLOCK_MONOTONIC."""

    committed_ns: int


class CalledFunction(Shape):
    """A function and its arguments, which are JSON as the model wrote it."""

    name: str
    arguments: str


class ChatToolCall(Shape, tag_field="type", tag="function"):
    """A call of a tool."""

    id: str
    function: CalledFunction


class ChatMessage(Shape):
    """The assistant's turn. The text is null if there are calls alone.

    Both names of the reasoning have the same; of a model that reasons they are null if there is none.
    """

    role: Literal["assistant"]
    content: str | None
    refusal: None
    reasoning_content: str | UnsetType | None = UNSET
    reasoning: str | UnsetType | None = UNSET
    tool_calls: list[ChatToolCall] | UnsetType = UNSET


class ChatChoice(Shape):
    """An answer to a conversation."""

    index: int
    finish_reason: ChatFinishReason
    logprobs: ChatLogprobs | None
    message: ChatMessage
    token_ids: list[int] | UnsetType = UNSET


class ChatCompletion(_Answer, kw_only=True):
    """The answer to POST /v1/chat/completions."""

    object: Literal["chat.completion"]
    choices: list[ChatChoice]
    usage: Usage
    prompt_logprobs: PromptLogprobs
    prompt_token_ids: list[int] | UnsetType = UNSET


class CalledFunctionDelta(Shape):
    """The name of a function, in a call's first chunk, or more of its arguments."""

    arguments: str
    name: str | UnsetType = UNSET


class ChatToolCallDelta(Shape):
    """What a chunk adds to a call; id and type come in its first one."""

    index: int
    function: CalledFunctionDelta
    id: str | UnsetType = UNSET
    type: Literal["function"] | UnsetType = UNSET


class ChatDelta(Shape):
    """What a chunk adds to the assistant's turn; the role comes first, with null if it is no text that follows."""

    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType | None = UNSET
    reasoning_content: str | UnsetType | None = UNSET
    reasoning: str | UnsetType = UNSET
    tool_calls: list[ChatToolCallDelta] | UnsetType = UNSET


class ChatChunkChoice(Shape):
    """What a chunk adds to a choice."""

    index: int
    delta: ChatDelta
    finish_reason: ChatFinishReason | None
    logprobs: ChatLogprobs | UnsetType = UNSET
    token_ids: list[int] | UnsetType = UNSET


class ChatChunk(_Chunk, kw_only=True):
    """An event of a streamed chat. `[DONE]` follows the last one."""

    object: Literal["chat.completion.chunk"]
    choices: list[ChatChunkChoice]
    prompt_token_ids: list[int] | UnsetType = UNSET


class CompletionChoice(Shape):
    """A continuation of a prompt."""

    index: int
    finish_reason: FinishReason
    logprobs: CompletionLogprobs | None
    text: str
    prompt_logprobs: PromptLogprobs
    token_ids: list[int] | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET


class Completion(_Answer, kw_only=True):
    """The answer to POST /v1/completions."""

    object: Literal["text_completion"]
    choices: list[CompletionChoice]
    usage: Usage


class CompletionChunkChoice(Shape):
    """What a chunk adds to a choice."""

    index: int
    text: str
    finish_reason: FinishReason | None
    logprobs: CompletionLogprobs | UnsetType = UNSET
    token_ids: list[int] | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET


class CompletionChunk(_Chunk, kw_only=True):
    """An event of a streamed completion. `[DONE]` follows the last one."""

    object: Literal["text_completion"]
    choices: list[CompletionChunkChoice]


class Embedding(Shape):
    """A vector: its values, or base64 of their little-endian float32."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingUsage(Shape):
    """Tokens of all inputs together."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingList(Shape):
    """The answer to POST /v1/embeddings."""

    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage


class TokenizeAnswer(Shape):
    """The answer to POST /tokenize; `max_model_len` is null until the engine is ready."""

    count: int
    max_model_len: int | None
    tokens: list[int]
    token_strs: list[str] | None


class DetokenizeAnswer(Shape):
    """The answer to POST /detokenize."""

    prompt: str


class AppliedTemplate(Shape):
    """The answer to POST /apply-template."""

    prompt: str


RESUMABLE: tuple[Any, ...] = (ChatChunk, CompletionChunk, ErrorEnvelope)  # events of streams that can be resumed
