"""Grammars at work: which outputs they accept, token by token."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from llguidance import LLMatcher, LLTokenizer
from tokenizers import AddedToken, Tokenizer

from rbee.server.text.output import ModelFormat
from tests.server.text.output.recorded_parts import TOOLS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rbee.server.text.output import Tool, ToolChoice
    from tests.server.text.output.recorded_parts import Recorded

# Tags that models have as tokens of their own.
TOKENS = (
    *("<tool_call>", "</tool_call>", "<think>", "</think>", "[THINK]", "[/THINK]", "<|tool_call|>", "<|python_tag|>"),
    *("[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"),
    *(
        "<｜tool▁calls▁begin｜>",
        "<｜tool▁call▁begin｜>",
        "<｜tool▁sep｜>",
        "<｜tool▁call▁end｜>",
        "<｜tool▁calls▁end｜>",
    ),
    *("<|tool_call_start|>", "<|tool_call_end|>", "<|python_start|>", "<|python_end|>"),
    *("<|channel|>", "<|message|>", "<|start|>", "<|end|>", "<|constrain|>"),
)
END = "<|end of test|>"
ENDS = ("<|im_end|>", "<|eom_id|>", "<|call|>", "<|return|>")  # of sequences: no grammar has them
STRICT = tuple(dataclasses.replace(tool, strict=True) for tool in TOOLS)
_OPTIONS = '\n%llguidance {"no_forcing": true}\n'


class Vocabulary:
    """A tokenizer, with these tokens added, as llguidance takes it."""

    def __init__(self, tokenizer: Tokenizer, tokens: Sequence[str] = ()) -> None:
        self.tokenizer = Tokenizer.from_str(tokenizer.to_str())
        self.tokenizer.add_special_tokens([AddedToken(token, special=True) for token in (*tokens, END)])
        self.special_tokens = list(tokens)
        self._llguidance = LLTokenizer(self.tokenizer.to_str(), eos_token=self.tokenizer.token_to_id(END))

    def accepts(self, grammar: str, output: str) -> bool:
        """Whether the whole output follows the grammar."""
        for end in ENDS:
            output = output.removesuffix(end)
        return self.accepts_tokens(grammar, self.tokenizer.encode(output, add_special_tokens=False).ids)

    def accepts_tokens(self, grammar: str, tokens: Sequence[int]) -> bool:
        """The same of an output that is given by its tokens."""
        matcher = LLMatcher(self._llguidance, grammar + _OPTIONS, log_level=0)
        assert not matcher.is_error(), matcher.get_error()
        return all(matcher.consume_token(token) for token in tokens) and bool(matcher.is_accepting())


def grammar(
    recorded: Recorded,
    vocabulary: Vocabulary,
    *,
    tools: Sequence[Tool] = STRICT,
    choice: ToolChoice = "auto",
    parallel: bool = True,
    answer: str | None = None,
) -> str:
    """The grammar of a model that writes like this one."""
    output_format = ModelFormat(
        recorded.tool_parser, recorded.reasoning_parser, vocabulary.special_tokens, vocabulary.tokenizer.token_to_id
    )
    source = output_format.grammar(
        tools, choice=choice, parallel=parallel, answer=answer, reasoning_open=recorded.reasoning_open
    )
    assert source is not None
    return source


def constrained(text: str) -> str:
    r"""An output as constrained models write it: without tags in strings, as these are tokens, and without \u escapes.

    llguidance allows those for control characters only.
    """
    for unlikely in (r" \u00e9", r" \ud83d\ude00", " </tool_call> </function>"):
        text = text.replace(unlikely, "")
    return text


def is_written_so(recorded: Recorded, vocabulary: Vocabulary) -> bool:
    """Whether a model with this vocabulary writes so: lists of calls, or names, in Mistral's format."""
    if recorded.tool_parser != "mistral" or "[TOOL_CALLS]" not in recorded.text:
        return True
    return ("[ARGS]" in recorded.text) == ("[ARGS]" in vocabulary.special_tokens)
