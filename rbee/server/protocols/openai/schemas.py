"""The shapes of OpenAI's requests: the fields of each route, and which values of other fields mean nothing.

Owns names and types, nothing that depends on a model. Does not know how a field that is in neither list is refused
(`rbee.server.protocols.fields`).
"""

from __future__ import annotations

from typing import Any, ClassVar

import msgspec

from rbee.server.protocols.parameters import GenerationRequest


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """A part of a message's content; only text can be read."""

    type: str
    text: str = ""


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """One message of a conversation."""

    role: str
    content: str | list[dict[str, Any]] | None = None
    name: str | None = None


class StreamOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What else a stream carries."""

    include_usage: bool = False  # a last chunk with the token counts and no choices
    continuous_usage_stats: bool = False  # the token counts so far in every chunk
    include_timing: bool = False  # every chunk has its token's commit, CLOCK_MONOTONIC; and `timings` as the last one
    resumable: bool = False  # events have ids, and the stream outlives its connection


class ChatRequest(GenerationRequest, frozen=True, kw_only=True):
    """The body of POST /v1/chat/completions."""

    prompt_field: ClassVar[str] = "messages"

    messages: list[dict[str, Any]]
    max_completion_tokens: int | None = None
    logprobs: bool = False
    top_logprobs: int = 0
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False

    @property
    def asked_logprobs(self) -> tuple[str, int | None]:
        return "top_logprobs", self.top_logprobs if self.logprobs else None


class CompletionRequest(GenerationRequest, frozen=True, kw_only=True):
    """The body of POST /v1/completions."""

    prompt: str | list[Any]  # text, token ids, or a list with one of these
    logprobs: int | None = None  # how many of the most likely tokens each token comes with; None: not even its own
    echo: bool = False  # the prompt comes before the completion, with its logprobs if these are asked for

    @property
    def echoes(self) -> bool:
        return self.echo

    @property
    def asked_logprobs(self) -> tuple[str, int | None]:
        return "logprobs", self.logprobs


class TokenizeRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The body of POST /tokenize: a prompt or messages."""

    model: str | None = None
    prompt: str | None = None
    messages: list[dict[str, Any]] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool = True


class DetokenizeRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The body of POST /detokenize."""

    model: str | None = None
    tokens: list[int]


# Fields that rbee does not support yet, each with the values that ask for nothing. These and null are accepted; any
# other value is refused by name.
_NEUTRAL_EVERYWHERE: dict[str, tuple[Any, ...]] = {
    "include_stop_str_in_output": (False,),
    "length_penalty": (1,),
    "prompt_logprobs": (),
    "response_format": ({"type": "text"},),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "use_beam_search": (False,),
}
NEUTRAL_CHAT = _NEUTRAL_EVERYWHERE | {
    "audio": (),
    "echo": (False,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "modalities": (["text"],),
    "parallel_tool_calls": (True, False),
    "prediction": (),
    "prompt_cache_key": (),
    "reasoning_effort": (),
    "safety_identifier": (),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "verbosity": (),
    "web_search_options": (),
}
NEUTRAL_COMPLETION = _NEUTRAL_EVERYWHERE | {
    "add_special_tokens": (True,),
    "suffix": ("",),
}
NEUTRAL_MESSAGE: dict[str, tuple[Any, ...]] = {
    "annotations": ([],),
    "audio": (),
    "function_call": (),
    "reasoning_content": ("",),
    "refusal": (),
    "tool_call_id": (),
    "tool_calls": ([],),
}
