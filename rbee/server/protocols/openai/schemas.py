"""The shapes of OpenAI's requests: the fields of each route, and how the other fields that clients send are taken.

Owns names and types, nothing that depends on a model. Does not know how a field is listed or refused
(`rbee.server.protocols.fields`).
"""

from __future__ import annotations

from typing import Any, ClassVar

import msgspec

from rbee.server.protocols.parameters import ADVISORY_OF_PEERS, MOST_TOKENS, GenerationRequest

UNLIMITED = -1  # as max_tokens: up to the end, in the words of llama.cpp's and LM Studio's clients


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """A part of a message's content; only text can be read."""

    type: str
    text: str | None = None
    refusal: str | None = None  # in place of the text, in a part of that type


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """One message of a conversation."""

    role: str
    content: str | list[dict[str, Any]] | None = None
    name: str | None = None
    tool_calls: list[dict[str, Any]] = msgspec.field(default_factory=list)  # of the assistant
    tool_call_id: str | None = None  # of a tool: the call whose result it is
    reasoning_content: Any = None  # of the assistant; these two go to the chat template, if it shows reasoning
    reasoning: Any = None


class FunctionTool(msgspec.Struct, frozen=True, kw_only=True):
    """One of the tools."""

    type: str
    function: dict[str, Any]


class Function(msgspec.Struct, frozen=True, kw_only=True):
    """What a tool of the type function is."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] = msgspec.field(default_factory=dict)
    strict: bool = False


class FunctionCall(msgspec.Struct, frozen=True, kw_only=True):
    """A call in an assistant's message."""

    id: str
    function: dict[str, Any]
    type: str = "function"


class CalledFunction(msgspec.Struct, frozen=True, kw_only=True):
    """What is called, and with what: JSON text."""

    name: str
    arguments: str


class ToolChoice(msgspec.Struct, frozen=True, kw_only=True):
    """A tool_choice that is an object."""

    type: str
    function: dict[str, Any] | None = None
    allowed_tools: dict[str, Any] | None = None


class AllowedTools(msgspec.Struct, frozen=True, kw_only=True):
    """The tools that may be called, of all that there are."""

    mode: str
    tools: list[dict[str, Any]]


class NamedFunction(msgspec.Struct, frozen=True, kw_only=True):
    """A function by its name."""

    name: str


class StreamOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What else a stream carries."""

    include_usage: bool = False  # a last chunk with the token counts and no choices
    continuous_usage_stats: bool = False  # with include_usage: the token counts so far in every chunk
    include_timing: bool = False  # every chunk has its token's commit, CLOCK_MONOTONIC; and `timings` as the last one
    resumable: bool = False  # events have ids, and the stream outlives its connection


class TextRequest(GenerationRequest, frozen=True, kw_only=True):
    """What the two routes have in common beside the parameters of every generation."""

    own_ranges: ClassVar[dict[str, tuple[float, float]]] = {"max_tokens": (UNLIMITED, MOST_TOKENS)}

    include_stop_str_in_output: bool = False  # the stop string, or the text of the stop token, ends the answer
    skip_special_tokens: bool = True  # the names of special tokens are not shown
    spaces_between_special_tokens: bool = True  # as the tokenizer writes them, if it writes any
    prompt_logprobs: int | None = None  # so many of the most likely tokens for each token of the prompt
    return_token_ids: bool = False  # the answer lists the ids of its tokens and of the prompt's
    # What the answer must be; one of these at most. The first is OpenAI's, the last two are llama.cpp's.
    response_format: dict[str, Any] | None = None
    structured_outputs: dict[str, Any] | None = None
    guided_json: str | dict[str, Any] | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None
    json_schema: str | dict[str, Any] | None = None
    grammar: str | None = None

    @property
    def asked_prompt_logprobs(self) -> int | None:
        return self.prompt_logprobs


class ChatRequest(TextRequest, frozen=True, kw_only=True):
    """The body of POST /v1/chat/completions."""

    prompt_field: ClassVar[str] = "messages"

    messages: list[dict[str, Any]]
    max_completion_tokens: int | None = None
    logprobs: bool = False
    top_logprobs: int = 0
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    add_special_tokens: bool = False  # those that the tokenizer puts around a text, beside the chat template's
    tools: list[dict[str, Any]] = msgspec.field(default_factory=list)
    tool_choice: str | dict[str, Any] | None = None  # None: "auto" with tools, else "none"
    parallel_tool_calls: bool = True
    enable_thinking: bool | None = None  # these two go to the chat template, if it knows them
    reasoning_effort: str | None = None
    thinking_token_budget: int | None = None  # how many tokens of the answer may be reasoning
    reasoning: dict[str, Any] | None = None  # OpenRouter's, see `rbee.server.protocols.openai.reasoning_options`
    # How the answer shows the reasoning, see `rbee.server.protocols.openai.reasoning_view`.
    include_reasoning: bool | None = None  # vLLM's and OpenRouter's
    separate_reasoning: bool | None = None  # SGLang's, as the next one
    stream_reasoning: bool | None = None
    reasoning_format: str | None = None  # llama.cpp's

    @property
    def asked_logprobs(self) -> tuple[str, int | None]:
        return "top_logprobs", self.top_logprobs if self.logprobs else None


class CompletionRequest(TextRequest, frozen=True, kw_only=True):
    """The body of POST /v1/completions."""

    prompt: str | list[Any]  # text or token ids, or a list of these
    logprobs: int | None = None  # how many of the most likely tokens each token comes with; None: not even its own
    echo: bool = False  # the prompt comes before the completion, with its logprobs if these are asked for
    add_special_tokens: bool = True  # those that the tokenizer puts around a text

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
    tools: list[dict[str, Any]] = msgspec.field(default_factory=list)  # of the messages
    add_special_tokens: bool | None = None
    add_generation_prompt: bool = True
    return_token_strs: bool = False  # the answer has the tokens as the vocabulary spells them, too
    continue_final_message: bool = False
    chat_template_kwargs: dict[str, Any] | None = None


class DetokenizeRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The body of POST /detokenize."""

    model: str | None = None
    tokens: list[int]


# Other spellings of parameters, as users of llama.cpp know the first two, and those of SGLang the others.
SYNONYMS = {
    "n_predict": "max_tokens",
    "repeat_penalty": "repetition_penalty",
    "regex": "guided_regex",
    "ebnf": "grammar",
}
# And of chats alone: Qwen's own service, and llama.cpp.
CHAT_SYNONYMS = SYNONYMS | {
    "thinking_budget": "thinking_token_budget",
    "thinking_budget_tokens": "thinking_token_budget",
}

# Fields that cannot change what the answer is. They are taken, and named in a Warning header.
_ADVISORY_EVERYWHERE = ADVISORY_OF_PEERS | frozenset(
    {
        "metadata",
        "prediction",
        "prompt_cache_key",
        "prompt_cache_retention",
        "safety_identifier",
        "service_tier",
        "store",
        "user",
        "verbosity",
    }
)
ADVISORY_CHAT = ADVISORY_COMPLETION = _ADVISORY_EVERYWHERE
ADVISORY_STREAM_OPTIONS = frozenset({"include_obfuscation"})
# What clients send back with the messages of earlier answers.
ADVISORY_MESSAGE = frozenset(
    {
        "annotations",
        "cache_control",
        "created_at",
        "id",
        "metadata",
        "provider_specific_fields",
        "reasoning",
        "reasoning_content",
        "reasoning_details",
        "refusal",
        "status",
        "timestamp",
    }
)
ADVISORY_PART = frozenset({"annotations", "cache_control", "id"})
ADVISORY_TOOL = frozenset({"cache_control"})
ADVISORY_CALL = frozenset({"cache_control", "extra_content", "index", "provider_specific_fields"})
ADVISORY_CALLED = frozenset({"parsed_arguments"})
# Of the messages' fields, what a template that shows reasoning gets.
REASONING_MESSAGE = frozenset({"reasoning", "reasoning_content"})

# Fields that would change the answer and that rbee does not support, each with the values that ask for nothing. These
# and null are accepted; any other value is refused by name.
_NEUTRAL_SAMPLING: dict[str, tuple[Any, ...]] = {
    "bad_words": ([],),
    "dry_multiplier": (0,),
    "dynatemp_range": (0,),
    "early_stopping": (False,),
    "length_penalty": (1,),
    "logits_processors": ([],),
    "mirostat": (0,),
    "repeat_last_n": (),
    "samplers": (),
    "tfs_z": (1,),
    "top_a": (0,),
    "truncate_prompt_tokens": (),
    "use_beam_search": (False,),
    "xtc_probability": (0,),
}
_NEUTRAL_EVERYWHERE: dict[str, tuple[Any, ...]] = _NEUTRAL_SAMPLING | {
    "guided_decoding_backend": (),
    "guided_whitespace_pattern": (),
    "lora": ([],),
    "return_tokens_as_token_ids": (False,),
}
NEUTRAL_CHAT = _NEUTRAL_EVERYWHERE | {
    "audio": (),
    "chat_template": (),
    "documents": ([],),
    "echo": (False,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "modalities": (["text"],),
    "thinking": (),
    "web_search_options": (),
}
NEUTRAL_COMPLETION = _NEUTRAL_EVERYWHERE | {"suffix": ("",)}
NEUTRAL_MESSAGE: dict[str, tuple[Any, ...]] = {"audio": (), "function_call": ()}
# Former names of OpenAI's fields, each with the remedy.
FORMER_CHAT = {
    "functions": 'send each function in tools, as {"type": "function", "function": ...}',
    "function_call": 'send tool_choice: "none", "auto", "required" or {"type": "function", "function": {"name": ...}}',
}
FORMER_MESSAGE = {"function_call": "send the call in tool_calls, with an id that its result names"}
# What --lenient ignores of these: the answer is of the same kind without it.
DISPENSABLE = frozenset({*_NEUTRAL_SAMPLING, "guided_decoding_backend", "guided_whitespace_pattern"})
