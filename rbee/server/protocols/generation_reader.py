"""From what a request says to a generation of the served model: what every protocol needs beside its own words.

Owns the model's name, its defaults, its prompts as token ids, and the refusals that depend on it. Runs in the event
loop or in a thread. Changes nothing: a refused request costs the engine nothing. Does not know a protocol's fields,
beyond those of a `GenerationRequest`.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from rbee.grammars import GBNF_LINE
from rbee.server.errors import Refusal, RefusalKind, invalid
from rbee.server.protocols.parameters import Limits, check_choices, read_parameters
from rbee.server.protocols.reasoning import reasoning_budget
from rbee.server.streams.generation import APART, Generation, OutputPlan, Prompt
from rbee.server.text.grammars import Suspect, Suspects
from rbee.server.text.tokenizer import TooManyTokensError
from rbee.server.text.tool_use import NO_TOOLS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rbee.messages import Ready
    from rbee.sampling_params import ReasoningBudget, SamplingParams
    from rbee.server.protocols.output_form import Form
    from rbee.server.protocols.parameters import GenerationRequest
    from rbee.server.protocols.reasoning import Sent
    from rbee.server.streams.generation import ReasoningView
    from rbee.server.text.chat_template import ChatTemplate
    from rbee.server.text.output import OutputFormat
    from rbee.server.text.served_model import ServedModel
    from rbee.server.text.token_text import Echo
    from rbee.server.text.tool_use import ToolUse


class ChatPrompt(NamedTuple):
    """The prompt of a conversation."""

    token_ids: list[int]
    reasoning_open: bool  # it ends inside of the model's reasoning


class Whole(NamedTuple):
    """The grammar of a whole output; the members are those of a `Generation`."""

    source: str
    param: str
    parts: tuple[Suspects, ...] = ()


class GenerationReader:
    """Reads generations of one model. All methods raise Refusal for what cannot be done, naming the field."""

    def __init__(self, model: ServedModel, *, num_rings: int, ring_capacity: int) -> None:
        self.model = model
        self._num_rings = num_rings
        self._ring_capacity = ring_capacity

    def with_defaults(self, given: dict[str, Any]) -> dict[str, Any]:
        """`given` with the model's own sampling parameters where the request is silent; null is silent."""
        return {**self.model.sampling_defaults, **{name: value for name, value in given.items() if value is not None}}

    def check_model(self, name: str | None) -> None:
        """A request may leave the model out: there is only one."""
        if name is not None:
            check_served(self.model, name)

    def template_for(self, tool_use: ToolUse) -> ChatTemplate | None:
        """The chat template of a conversation with these tools, if the model has one."""
        template = self.model.chat_template
        return template and template.for_tools(offered=bool(tool_use.offered))

    def check_choices(self, request: GenerationRequest, num_prompts: int) -> None:
        """See `check_choices` of the parameters; for protocols that take several prompts, before they read them."""
        check_choices(request, num_prompts, self._num_rings)

    def text_prompt(
        self, text: str, engine: Ready, param: str = "prompt", *, add_special_tokens: bool = True
    ) -> list[int]:
        """The token ids of a plain text; `param` is where it stands in the request."""
        limit = engine.max_model_len
        with _fitting(limit, param):
            return self.model.codec.encode(text, add_special_tokens=add_special_tokens, limit=limit)

    def chat_prompt(
        self,
        messages: list[dict[str, Any]],
        engine: Ready,
        param: str = "messages",
        *,
        add_special_tokens: bool = False,
        **options: Any,
    ) -> ChatPrompt:
        """The prompt of messages, as `ChatTemplate.render` takes them; `options` are its others.

        `param` is where they stand in the request.
        """
        limit = engine.max_model_len
        with _fitting(limit, param):
            pieces = self.chat_pieces(messages, limit, **options)
            token_ids = self.model.codec.encode_pieces(pieces, add_special_tokens=add_special_tokens, limit=limit)
        beginning = messages[-1]["content"] or "" if options.get("continue_final_message") else ""
        return ChatPrompt(token_ids, self.model.output_format.opens_reasoning(pieces[-1], beginning))

    def chat_pieces(
        self, messages: list[dict[str, Any]], limit: int, tool_use: ToolUse = NO_TOOLS, **options: Any
    ) -> list[str]:
        """The pieces of such a prompt, which may have more than `limit` tokens; no message has many times as many.

        Raises:
            TooManyTokensError: one has.
        """
        template = self.template_for(tool_use)
        if template is None:
            raise invalid(
                None,
                f"The model {self.model.name!r} {self.model.no_chat_reason}; use /v1/completions.",
                code="no_chat_template",
            )
        for message in messages:
            for text in _texts(message):
                self.model.codec.check_beginning(text, limit)
        return template.render(messages, tools=tool_use.offered, limit=limit, **options)

    def budget(self, asked: Sent[int], prompt: ChatPrompt, ignored: list[str]) -> ReasoningBudget | None:
        """See `reasoning_budget`."""
        return reasoning_budget(asked, self.model.output_format, ignored, is_open=prompt.reasoning_open)

    def generation(
        self,
        request: GenerationRequest,
        prompt: list[int],
        *,
        max_tokens: int | None,
        deadlines: list[str],
        engine: Ready,
        received_ns: int,
        echo: Echo | None = None,
        more_prompts: Sequence[Prompt] = (),
        show_output: bool = True,
        form: Form | None = None,
        tool_use: ToolUse = NO_TOOLS,
        chat: ChatPrompt | None = None,
        as_it_is: bool = False,
        reasoning: ReasoningView = APART,
        budget: ReasoningBudget | None = None,
    ) -> Generation:
        """What the engine is asked for.

        Args:
            request: has passed `check_parameters`.
            prompt: its token ids.
            max_tokens: as asked for; None takes what the model's length leaves, of several prompts behind the longest.
            deadlines: the values of its X-Request-Deadline headers.
            engine: the one that runs.
            received_ns: see `Generation`.
            echo: see there too.
            more_prompts: also; all have the same parameters.
            show_output: also.
            form: which outputs there may be; None: all.
            tool_use: see `Generation`.
            chat: the prompt again, if it is a conversation's: then the output may have reasoning and calls.
            as_it_is: all that the model writes is shown as text, unless it may call tools.
            reasoning: how the output shows it, if it has any.
            budget: how many of its tokens may be reasoning.
        """
        if not engine.has_head:
            raise invalid(
                "model",
                f"The model {self.model.name!r} has no output head, so that it generates no text; use /v1/embeddings.",
                code="no_output_head",
            )
        longest = max([len(prompt), *(len(more.token_ids) for more in more_prompts)])
        parameters = read_parameters(
            request,
            max_tokens=max_tokens,
            prompt_tokens=longest,
            num_prompts=1 + len(more_prompts),
            limits=Limits(engine.max_model_len, engine.vocab_size, self._num_rings, self._ring_capacity),
            end_token_ids=self.model.end_token_ids,
            deadlines=deadlines,
        )
        sampling = parameters.sampling if budget is None else _with_budget(parameters.sampling, budget)
        plan, grammar = None, None if form is None else Whole(form.source, form.param)
        if chat is not None:
            if tool_use.tools or (self.model.output_format.has_reasoning and not as_it_is):
                plan = OutputPlan(
                    format=self.model.output_format,
                    tools=tool_use.tools,
                    reasoning_open=chat.reasoning_open,
                    reasoning=reasoning,
                )
            grammar = self._chat_grammar(form, tool_use, chat)
        return Generation(
            received_ns=received_ns,
            prompt=prompt,
            sampling=sampling,
            stops=parameters.stops,
            n=request.n,
            echo=echo,
            more_prompts=tuple(more_prompts),
            show_output=show_output,
            priority=request.priority,
            deadline_ns=parameters.deadline_ns,
            cache_salt=request.cache_salt,
            tool_use=tool_use,
            output=plan,
            grammar="" if grammar is None else grammar.source,
            grammar_param="" if grammar is None else grammar.param,
            grammar_parts=() if grammar is None else grammar.parts,
            grammar_end_ids=() if request.ignore_eos else tuple(sorted(self.model.end_token_ids)),
        )

    def _chat_grammar(self, form: Form | None, tool_use: ToolUse, chat: ChatPrompt) -> Whole | None:
        """What a whole output may be: the answer that is asked for, calls, and the reasoning before them."""
        output_format = self.model.output_format
        if form is not None and form.is_grammar and tool_use.tools:
            raise invalid(
                form.param,
                f"{form.param} is a grammar of the whole answer, which leaves no place for calls; leave tools out, "
                "or ask for a JSON schema, a regular expression or a choice.",
            )
        if tool_use.choice == "required" and not output_format.has_calls:
            raise invalid(
                "tool_choice",
                "tool_choice asks for a call, but this server leaves calls as text (--tool-parser none); ask for a "
                "JSON schema instead.",
            )
        if form is not None and not tool_use.tools and not output_format.has_reasoning:
            return Whole(form.source, form.param)
        source = output_format.grammar(
            tool_use.tools,
            choice="required" if tool_use.choice == "required" else "auto",
            parallel=tool_use.parallel,
            answer=None if form is None else form.rule,
            reasoning_open=chat.reasoning_open,
            others_shown=len(tool_use.tools) < len(tool_use.offered),
        )
        if source is None:
            return None
        of_tools = _suspected(tool_use, output_format)
        if form is None:
            return Whole(source, "tools", of_tools)
        if form.source.startswith(GBNF_LINE):
            source += form.source
        of_form = Suspects([Suspect(form.param)], lambda _first, _end: form.source)
        return Whole(source, "tools" if tool_use.tools else form.param, (of_form, *of_tools))


def _suspected(tool_use: ToolUse, output_format: OutputFormat) -> tuple[Suspects, ...]:
    """The tools whose arguments a grammar holds to their schemas, if there are any."""
    bound = [tool for tool in tool_use.tools if tool_use.choice == "required" or tool.strict]
    if not bound:
        return ()
    numbers = {tool.name: number for number, tool in enumerate(tool_use.offered)}
    suspects = [Suspect(f"tools[{numbers[tool.name]}]", f", the tool {tool.name!r},") for tool in bound]

    def source(first: int, end: int) -> str:
        calls = output_format.grammar(bound[first:end], choice="required", parallel=False, answer=None)
        assert calls is not None, "there is a tool"
        return calls

    return (Suspects(suspects, source),)


def _with_budget(sampling: SamplingParams, budget: ReasoningBudget) -> SamplingParams:
    """With a budget, whose end must not be a token that other parameters exclude."""
    end = f"token {budget.end_id}, the end of the reasoning, which the request limits"
    if sampling.allowed_token_ids is not None and budget.end_id not in sampling.allowed_token_ids:
        raise invalid("allowed_token_ids", f"allowed_token_ids do not hold {end}; add it.")
    if sampling.min_tokens and budget.end_id in sampling.stop_token_ids:
        message = f"min_tokens excludes {end}, because stop_token_ids hold it; leave one of the two out."
        raise invalid("min_tokens", message)
    return msgspec.structs.replace(sampling, reasoning_budget=budget)


def check_served(model: ServedModel, name: str) -> None:
    """Raise Refusal unless clients call `model` by this name."""
    if name != model.name:
        raise Refusal(
            RefusalKind.NOT_FOUND,
            f"The model {name!r} is not served here; this is {model.name!r}.",
            param="model",
            code="model_not_found",
        )


def _texts(message: dict[str, Any]) -> Iterator[str]:
    """The long texts of a message."""
    yield message["content"] or ""
    yield message.get("reasoning", "")
    for call in message.get("tool_calls", ()):
        yield call.text


@contextlib.contextmanager
def _fitting(max_model_len: int, param: str) -> Iterator[None]:
    """Refuse a text that the model has no room for."""
    try:
        yield
    except TooManyTokensError as error:
        raise invalid(
            param,
            f"This model's maximum context length is {max_model_len} tokens, but the prompt has at least "
            f"{error.found}. Shorten it.",
            code="context_length_exceeded",
        ) from None
