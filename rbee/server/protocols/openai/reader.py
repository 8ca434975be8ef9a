"""From the bytes of an OpenAI request to a generation and its dialect: where fields, model and limits meet.

Owns the order of the checks, and which prompt a request means. Runs in the event loop or in a thread. Changes nothing:
a refused request costs the engine nothing.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, NamedTuple

from rbee.server.errors import invalid
from rbee.server.protocols.fields import FieldReader, decode_object, in_words_of, respelled
from rbee.server.protocols.generation_reader import GenerationReader
from rbee.server.protocols.openai.dialect import ChatDialect, CompletionDialect
from rbee.server.protocols.openai.fingerprint import system_fingerprint
from rbee.server.protocols.openai.prompts import read_messages, read_prompts
from rbee.server.protocols.openai.reasoning_options import read_reasoning
from rbee.server.protocols.openai.reasoning_view import reasoning_view
from rbee.server.protocols.openai.schemas import (
    ADVISORY_CHAT,
    ADVISORY_COMPLETION,
    ADVISORY_STREAM_OPTIONS,
    CHAT_SYNONYMS,
    DISPENSABLE,
    NEUTRAL_CHAT,
    NEUTRAL_COMPLETION,
    SYNONYMS,
    UNLIMITED,
    ChatRequest,
    CompletionRequest,
    StreamOptions,
    TokenizeRequest,
)
from rbee.server.protocols.openai.tools import read_tool_use, refuse_former
from rbee.server.protocols.output_form import (
    of_choice,
    of_grammar,
    of_json,
    of_regex,
    of_response_format,
    of_structured_outputs,
    of_vllm_grammar,
    only_form,
)
from rbee.server.protocols.parameters import check_parameters, check_token_ids
from rbee.server.protocols.reasoning import given_variables, reasoning_variables
from rbee.server.streams.generation import APART, Prompt
from rbee.server.text.token_text import Echo

if TYPE_CHECKING:
    from rbee.messages import Ready
    from rbee.server.protocols.openai.dialect import OpenAiDialect
    from rbee.server.protocols.openai.prompts import GivenPrompt
    from rbee.server.protocols.openai.reasoning_options import ReasoningOptions
    from rbee.server.protocols.openai.schemas import TextRequest
    from rbee.server.protocols.output_form import Form
    from rbee.server.streams.dialect import Dialect
    from rbee.server.streams.generation import Generation
    from rbee.server.text.chat_template import ChatTemplate
    from rbee.server.text.output.tools import Tool
    from rbee.server.text.served_model import ServedModel
    from rbee.server.text.tokenizer import TextCodec
    from rbee.server.text.tool_use import ToolUse

DEFAULT_COMPLETION_TOKENS = 16  # OpenAI's default for plain completions


class Asked(NamedTuple):
    """What a request asks for."""

    generation: Generation
    dialect: Dialect
    stream: bool  # whether the client wants the answer as it comes
    resumable: bool  # whether it wants to be able to resume the stream


class RequestReader:
    """Reads the requests for one model. All methods raise Refusal for what cannot be done, naming the field."""

    def __init__(self, model: ServedModel, *, num_rings: int, ring_capacity: int, lenient: bool) -> None:
        self._reader = GenerationReader(model, num_rings=num_rings, ring_capacity=ring_capacity)
        self._codec = model.codec
        self._lenient = lenient
        self.check_model = self._reader.check_model

    def read_chat(self, body: bytes, deadlines: list[str], engine: Ready, received_ns: int) -> Asked:
        """`deadlines` are the values of the X-Request-Deadline headers; for `received_ns` see `Generation`."""
        given = decode_object(body)
        with in_words_of(given, CHAT_SYNONYMS):
            return self._chat(respelled(given, CHAT_SYNONYMS), deadlines, engine, received_ns)

    def read_completion(self, body: bytes, deadlines: list[str], engine: Ready, received_ns: int) -> Asked:
        given = decode_object(body)
        with in_words_of(given, SYNONYMS):
            return self._completion(respelled(given, SYNONYMS), deadlines, engine, received_ns)

    def _chat(self, given: dict[str, Any], deadlines: list[str], engine: Ready, received_ns: int) -> Asked:
        reader = FieldReader(lenient=self._lenient)
        template = self._reader.model.chat_template
        request, messages, tool_use = read_chat(self._reader.with_defaults(given), reader, template)
        self.check_model(request.model)
        reasoning = read_reasoning(request, reader)
        view = reasoning_view(request, reasoning.include)
        prompt = self._reader.chat_prompt(
            messages,
            engine,
            tool_use=tool_use,
            add_special_tokens=request.add_special_tokens,
            add_generation_prompt=request.add_generation_prompt,
            continue_final_message=request.continue_final_message,
            variables=template_variables(self._reader, request, reasoning, reader, tool_use),
        )
        generation = self._reader.generation(
            request,
            prompt.token_ids,
            max_tokens=output_limit(request),
            deadlines=deadlines,
            engine=engine,
            received_ns=received_ns,
            form=read_form(request, reader, self._codec),
            tool_use=tool_use,
            chat=prompt,
            as_it_is=not request.skip_special_tokens and view is None,
            reasoning=view or APART,
            budget=self._reader.budget(reasoning.budget, prompt, reader.ignored),
        )
        return self._asked(request, reader, ChatDialect, generation, engine)

    def _completion(self, given: dict[str, Any], deadlines: list[str], engine: Ready, received_ns: int) -> Asked:
        reader = FieldReader(lenient=self._lenient)
        request, prompts = read_completion(self._reader.with_defaults(given), reader)
        self.check_model(request.model)
        self._reader.check_choices(request, len(prompts))
        first, *more = [self._prompt(request, prompt, engine) for prompt in prompts]
        max_tokens = _limit(DEFAULT_COMPLETION_TOKENS if request.max_tokens is None else request.max_tokens)
        generation = self._reader.generation(
            request,
            first.token_ids,
            max_tokens=max_tokens,
            deadlines=deadlines,
            engine=engine,
            received_ns=received_ns,
            echo=first.echo,
            more_prompts=more,
            show_output=max_tokens != 0,
            form=read_form(request, reader, self._codec),
        )
        return self._asked(request, reader, CompletionDialect, generation, engine)

    def _prompt(self, request: CompletionRequest, given: GivenPrompt, engine: Ready) -> Prompt:
        text, token_ids = given.text, given.token_ids
        if text is None:
            check_token_ids(token_ids, given.where, engine.vocab_size)
        else:
            token_ids = self._reader.text_prompt(
                text, engine, given.where, add_special_tokens=request.add_special_tokens
            )
        if not token_ids:
            raise invalid(given.where, f"{given.where} has no tokens; send at least one.")
        if not request.echo:
            return Prompt(token_ids)
        echo = Echo.of(
            token_ids,
            text,
            self._codec,
            skip_special_tokens=request.skip_special_tokens,
            spaces_between_special_tokens=request.spaces_between_special_tokens,
        )
        return Prompt(token_ids, echo)

    def _asked(
        self,
        request: TextRequest,
        reader: FieldReader,
        dialect: type[OpenAiDialect],
        generation: Generation,
        engine: Ready,
    ) -> Asked:
        options = read_stream_options(request, reader, generation.num_sequences)
        model = self._reader.model
        generation = dataclasses.replace(
            generation,
            include_stop=request.include_stop_str_in_output,
            skip_special_tokens=request.skip_special_tokens,
            spaces_between_special_tokens=request.spaces_between_special_tokens,
            list_tokens=request.return_token_ids,
            timings=request.timings or options.include_timing,
        )
        answer = dialect(
            model.name,
            generation,
            options,
            self._codec.token_bytes,
            reader.ignored,
            prompt_logprobs=request.prompt_logprobs,
            fingerprint=system_fingerprint(model.digest, engine),
        )
        return Asked(generation, answer, request.stream, options.resumable)


class ReadChat(NamedTuple):
    """A chat request, with its messages as `ChatTemplate.render` takes them."""

    request: ChatRequest
    messages: list[dict[str, Any]]
    tool_use: ToolUse


def read_chat(given: dict[str, Any], reader: FieldReader, template: ChatTemplate | None = None) -> ReadChat:
    """A chat request; `template` says which of its fields can be followed."""
    refuse_former(given)
    request = reader.read(given, ChatRequest, NEUTRAL_CHAT, advisory=ADVISORY_CHAT, dispensable=DISPENSABLE)
    _check_request(request)
    if request.top_logprobs and not request.logprobs:
        raise invalid("top_logprobs", "top_logprobs may only be set when logprobs is true.")
    if not request.messages:
        raise invalid("messages", "messages must hold at least one message.")
    tool_use = read_tool_use(request.tools, request.tool_choice, reader, parallel=request.parallel_tool_calls)
    shown = shows_reasoning(template, tool_use.offered)
    messages = read_messages(request.messages, reader, shows_reasoning=shown)
    check_continued(request, messages, given)
    return ReadChat(request, messages, tool_use)


def template_variables(
    model: GenerationReader, request: ChatRequest, reasoning: ReasoningOptions, reader: FieldReader, tool_use: ToolUse
) -> dict[str, Any]:
    """What the chat template gets; of the fields that only some templates know, this one's."""
    switches = reasoning_variables(
        model.template_for(tool_use),
        reader.ignored,
        enable=reasoning.enable.value,
        implied=reasoning.implied,
        effort=reasoning.effort.value,
        enable_field=reasoning.enable.field,
        effort_field=reasoning.effort.field,
    )
    return switches | given_variables(request.chat_template_kwargs)


def check_continued(
    request: ChatRequest | TokenizeRequest, messages: list[dict[str, Any]], given: dict[str, Any]
) -> None:
    """That continue_final_message, if it is set, has a message to continue; `given` tells what else was set."""
    if not request.continue_final_message:
        return
    if request.add_generation_prompt and given.get("add_generation_prompt") is not None:
        raise invalid(
            "continue_final_message",
            "continue_final_message and add_generation_prompt exclude each other; set one only.",
        )
    if not messages or messages[-1]["role"] != "assistant":
        raise invalid("continue_final_message", "continue_final_message needs a last message whose role is assistant.")
    if "tool_calls" in messages[-1]:
        raise invalid("continue_final_message", "continue_final_message needs a last message without tool_calls.")


def shows_reasoning(template: ChatTemplate | None, tools: tuple[Tool, ...]) -> bool:
    """Whether the template shows what the assistant thought in earlier turns."""
    return template is not None and template.for_tools(offered=bool(tools)).abilities.reasoning_field is not None


def read_completion(given: dict[str, Any], reader: FieldReader) -> tuple[CompletionRequest, list[GivenPrompt]]:
    """A completion request, and its prompts."""
    request = reader.read(
        given, CompletionRequest, NEUTRAL_COMPLETION, advisory=ADVISORY_COMPLETION, dispensable=DISPENSABLE
    )
    _check_request(request)
    return request, read_prompts(request.prompt)


def read_form(request: TextRequest, reader: FieldReader, codec: TextCodec) -> Form | None:
    """What the answer must be; None: any text. `codec` is the model's."""
    return only_form(
        [
            of_response_format(request.response_format, reader, codec),
            of_structured_outputs(request.structured_outputs, reader, codec),
            of_json(request.guided_json, "guided_json"),
            of_regex(request.guided_regex, "guided_regex"),
            of_choice(request.guided_choice, "guided_choice"),
            of_vllm_grammar(request.guided_grammar, "guided_grammar"),
            of_json(request.json_schema, "json_schema"),
            of_grammar(request.grammar, "grammar"),
        ]
    )


def _check_request(request: TextRequest) -> None:
    check_parameters(request)
    if request.prompt_logprobs is not None and request.stream:
        raise invalid("prompt_logprobs", "prompt_logprobs come with a whole answer only; leave stream out.")


def read_stream_options(request: TextRequest, reader: FieldReader, num_choices: int = 1) -> StreamOptions:
    """The stream options of a request for so many choices; they need stream."""
    if request.stream_options is None:
        return StreamOptions()
    if not request.stream:
        raise invalid("stream_options", "stream_options may only be set when stream is true.")
    path = "stream_options."
    options = reader.read(request.stream_options, StreamOptions, {}, path, advisory=ADVISORY_STREAM_OPTIONS)
    if options.resumable and max(request.n, num_choices) > 1:
        raise invalid(
            "stream_options.resumable",
            f"resumable is possible for one choice, and these are {max(request.n, num_choices)} (n for each prompt).",
        )
    if options.continuous_usage_stats and not options.include_usage:
        reader.ignored.append(path + "continuous_usage_stats")  # as in vLLM
    return options


def output_limit(request: ChatRequest) -> int | None:
    """How many tokens a chat request wants at most; None leaves it to the model's length."""
    asked = {_limit(request.max_tokens), request.max_completion_tokens} - {None}
    if len(asked) > 1:
        raise invalid("max_tokens", "max_tokens and max_completion_tokens differ; send max_completion_tokens only.")
    return next(iter(asked), None)


def _limit(max_tokens: int | None) -> int | None:
    return None if max_tokens == UNLIMITED else max_tokens
