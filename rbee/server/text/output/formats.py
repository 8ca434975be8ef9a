"""The formats of outputs by their names, and which of them a model writes.

Owns the names, which are vLLM's where it has the format, and how a format is recognized by a chat template: models
write calls and reasoning as their template does.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

from rbee.errors import ConfigError
from rbee.server.text.output.dsml import Dsml
from rbee.server.text.output.grammars import Demand
from rbee.server.text.output.harmony import HARMONY_TAGS, Harmony
from rbee.server.text.output.interface import ReasoningTags
from rbee.server.text.output.marks import Spelling
from rbee.server.text.output.python_tag import FunctionaryTags, LlamaTags
from rbee.server.text.output.pythonic import LFM2_START, Lfm2, Pythonic
from rbee.server.text.output.qwen3_coder import Qwen3Coder
from rbee.server.text.output.reading import GeneratorParser
from rbee.server.text.output.reasoning_formats import GRANITE, MAGISTRAL, NO_REASONING, THINK, ReasoningFormat
from rbee.server.text.output.tagged import Tagged
from rbee.server.text.output.tool_formats import DeepSeek, JsonTags, Mistral, Recipients, ToolFormat

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from rbee.server.text.output.interface import OutputParser, ToolChoice
    from rbee.server.text.output.tools import Tool


def _no_token(_text: str) -> None:
    """No text is a token."""


AUTO, NONE, HARMONY = "auto", "none", "openai"
_F = TypeVar("_F")


class Known(NamedTuple, Generic[_F]):
    """A format that has a name."""

    format: _F | None  # None: harmony, which is one for both
    models: str  # that write it
    marks: tuple[tuple[str, ...], ...]  # a template that has all strings of one of these is such a model's
    other_names: tuple[str, ...] = ()


_GPT_OSS = ("<|channel|>", "<|message|>")
_GRANITE_TAGS = JsonTags(("<|tool_call|>", "<tool_call>", "<function_call>"), ("</tool_call>",))

# The first one that fits is the model's format.
TOOL_FORMATS: Mapping[str, Known[ToolFormat]] = {
    HARMONY: Known(None, "gpt-oss", (_GPT_OSS,), ("gpt-oss",)),
    "deepseek_v32": Known(Dsml(), "DeepSeek V3.2", (("｜DSML｜",),), ("deepseekv32",)),
    "deepseek_v3": Known(DeepSeek(), "DeepSeek V3, R1", (("<｜tool▁call▁begin｜>", "```json"),)),
    "deepseek_v31": Known(DeepSeek(), "DeepSeek V3.1", (("<｜tool▁call▁begin｜>",),)),
    "qwen3_coder": Known(Qwen3Coder(), "Qwen3-Coder", (("<function=", "<parameter="),), ("qwen3_xml",)),
    "functionary_v3_2": Known(Recipients(), "Functionary v3.2", ((">>>all",),), ("functionary",)),
    "functionary_v3_1": Known(FunctionaryTags(), "Functionary v3.1", (("<function=",),)),
    "mistral": Known(Mistral(), "Mistral, Magistral, Devstral", (("[TOOL_CALLS]",),)),
    "granite": Known(_GRANITE_TAGS, "Granite 3", (("<|tool_call|>",), ("<function_call>",)), ("granite-20b-fc",)),
    "hermes": Known(
        JsonTags(("<tool_call>",), ("</tool_call>",)),
        "Hermes, Qwen2.5, Qwen3, Granite 4, SmolLM3; templates that write no calls",
        (("<tool_call>",),),
        ("granite4",),
    ),
    "lfm2": Known(Lfm2(), "LFM2, LFM2.5", ((LFM2_START,), ("<|tool_list_start|>",), ("List of tools: [",))),
    "pythonic": Known(
        Pythonic(),
        "Llama 4 and ToolACE, as they are prompted for it",
        (("[func_name1(",),),
        ("llama4_pythonic",),
    ),
    "llama3_json": Known(
        LlamaTags(), "Llama 3.1, 3.2, 3.3", (("<|python_tag|>",), ("<|start_header_id|>", "ipython")), ("llama4_json",)
    ),
}
_WITHOUT_CALLS = "hermes"  # for models whose template writes no calls: a grammar can hold them to it
REASONING_FORMATS: Mapping[str, Known[ReasoningFormat]] = {
    HARMONY: Known(None, "gpt-oss", (_GPT_OSS,), ("openai_gptoss", "gpt-oss")),
    "mistral": Known(MAGISTRAL, "Magistral", (("[THINK]",),), ("magistral",)),
    "granite": Known(GRANITE, "Granite 3.2, 3.3", (("my thought process",), ("<response>",))),
    "deepseek_r1": Known(THINK, "DeepSeek R1, V3.1, V3.2", (("</think>", "<｜Assistant｜>"),), ("deepseek_v3",)),
    "qwen3": Known(THINK, "Qwen3, QwQ, SmolLM3, other models that think", (("</think>",),)),
}


def output_format(
    template: str | None,
    special_tokens: Iterable[str] = (),
    token_id: Callable[[str], int | None] = _no_token,
    *,
    tool_parser: str = AUTO,
    reasoning_parser: str = AUTO,
) -> ModelFormat:
    """The format in which a model writes.

    Args:
        template: the source of its chat template.
        special_tokens: its tokens with a meaning of their own.
        token_id: the id of one of its tokens that were added to the vocabulary.
        tool_parser: the name of a format; "auto" for the template's, "none" for outputs whose calls stay text.
        reasoning_parser: the same for reasoning.

    Raises:
        ConfigError: there is no such format.
    """
    source = template or ""
    return ModelFormat(
        _choice("--tool-parser", tool_parser, TOOL_FORMATS, source) or _WITHOUT_CALLS,
        _choice("--reasoning-parser", reasoning_parser, REASONING_FORMATS, source) or NONE,
        special_tokens,
        token_id,
    )


def _choice(option: str, name: str, known: Mapping[str, Known[_F]], template: str) -> str | None:
    """The format's own name; None if the template shows none."""
    if name == AUTO:
        for candidate, format_ in known.items():
            if any(all(mark in template for mark in marks) for marks in format_.marks):
                return candidate
        return None
    for candidate, format_ in known.items():
        if name in (candidate, *format_.other_names):
            return candidate
    if name == NONE:
        return name
    raise ConfigError(f"{option} is {name!r}; it must be {AUTO}, {NONE} or one of {', '.join(known)}.")


def _is_part(token: str, tags: Iterable[str]) -> bool:
    """Whether tags are spelled with this token."""
    return any(token in tag and token != tag for tag in tags)


class ModelFormat:
    """The OutputFormat of one model.

    Args:
        tool_parser: the name of its format of calls, or "none".
        reasoning_parser: the same of reasoning.
        special_tokens: of the model; those that are no tags of the formats are taken out of texts.
        token_id: the id of a token that was added to the model's vocabulary; None for a text that is none.

    Attributes:
        token_names: the tags, and other special tokens, that are tokens of the model: their names by their ids. In an
            output that is read, SIGN stands in front of them; their letters alone are text.
    """

    def __init__(
        self,
        tool_parser: str,
        reasoning_parser: str,
        special_tokens: Iterable[str] = (),
        token_id: Callable[[str], int | None] = _no_token,
    ) -> None:
        self.tool_parser = tool_parser
        self.reasoning_parser = reasoning_parser
        self.has_reasoning = reasoning_parser != NONE  # outputs may have some, also where no tools are given
        self._reasoning = REASONING_FORMATS[reasoning_parser].format if self.has_reasoning else None
        self.has_calls = tool_parser != NONE  # else they stay text
        tags = self._tags()
        hidden = frozenset(token for token in special_tokens if token.strip() and not _is_part(token, tags))
        self._hidden = hidden
        self._token_id = token_id
        ids = {tag: self._token_of(tag) for tag in sorted(hidden | tags)}
        self.token_names: Mapping[int, str] = {number: tag for tag, number in ids.items() if number is not None}
        self._spelling = Spelling(self.token_names.values())
        self._readers = {has_calls: self._reader(hidden, has_calls=has_calls) for has_calls in {False, self.has_calls}}

    @property
    def reasoning_tags(self) -> ReasoningTags | None:
        form = self._reasoning or NO_REASONING
        ends = [self._token_of(tag) for tag in form.closers | form.closing_phrases]
        if len(ends) != 1 or ends[0] is None:
            return None
        begins = (self._token_of(tag) for tag in sorted(form.openers))
        return ReasoningTags(tuple(token for token in begins if token is not None), ends[0])

    def parser(self, *, tools: Sequence[Tool], reasoning_open: bool, keep_tags: bool = False) -> OutputParser:
        reader = self._readers[self.has_calls and bool(tools)]
        named = {tool.name: tool for tool in tools}
        return GeneratorParser(
            reader.read,
            named,
            self._spelling,
            reasoning_open=reasoning_open,
            keep_tags=keep_tags,
            only_closes=partial(reader.only_closes, spelling=self._spelling),
        )

    def grammar(
        self,
        tools: Sequence[Tool],
        *,
        choice: ToolChoice,
        parallel: bool,
        answer: str | None,
        reasoning_open: bool = False,
        others_shown: bool = False,
    ) -> str | None:
        demand = Demand(
            self._token_of,
            tools if self.has_calls else (),
            required=choice == "required",
            parallel=parallel,
            answer=answer,
            reasoning_open=reasoning_open,
        )
        if demand.is_empty and not (others_shown and self.has_calls):
            return None
        if HARMONY in (self.tool_parser, self.reasoning_parser):
            return demand.harmony()
        return demand.tagged(self._reasoning or NO_REASONING, self.tool_parser)

    def opens_reasoning(self, prompt: str, beginning: str = "") -> bool:
        """Whether a prompt, of which this is the end, ends inside of the reasoning.

        `beginning` is the beginning of the answer, if the prompt has one already.
        """
        form = self._reasoning
        if form is None:
            return False
        openers = tuple(form.openers)
        if beginning.strip():  # as its parser would read it
            return beginning.lstrip().startswith(openers) and not any(tag in beginning for tag in form.closers)
        return prompt.rstrip().endswith(openers)

    def _token_of(self, tag: str) -> int | None:
        """The id of a tag that is a token: a special one, or one in angle brackets."""
        is_tag = tag in self._hidden or (tag.startswith("<") and tag.endswith(">"))
        return self._token_id(tag) if is_tag else None

    def _tags(self) -> frozenset[str]:
        """All tags of the formats."""
        if HARMONY in (self.tool_parser, self.reasoning_parser):
            return HARMONY_TAGS
        calls = TOOL_FORMATS[self.tool_parser].format if self.has_calls else None
        tags = (self._reasoning or NO_REASONING).tokens
        return tags if calls is None else tags | calls.openers | calls.tags

    def _reader(self, hidden: frozenset[str], *, has_calls: bool) -> Harmony | Tagged:
        if HARMONY in (self.tool_parser, self.reasoning_parser):
            return Harmony(hidden, has_reasoning=self.has_reasoning, has_calls=has_calls)
        calls = TOOL_FORMATS[self.tool_parser].format if has_calls else None
        return Tagged(self._reasoning or NO_REASONING, calls, hidden)
