"""Grammars of whole outputs: reasoning, which is free, then text with calls, calls alone, or an answer.

* White space is bounded.
* Arguments follow the tool's schema where there must be a call, and where the tool is strict. Members that the schema
  does not have are left out, unless it mentions additionalProperties. A keyword that llguidance does not know makes the
  grammar of a strict tool invalid; for any other tool it does not count.
* In Qwen3-Coder's format a value that may be a string is free, but for an enum; all other values follow their schema.
* gpt-oss ends its output with a call: there is one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rbee.server.text.output.call_grammars import CALL_GRAMMARS, Calls, CallWriter
from rbee.server.text.output.lark import SPACE, TEXT, Lark, either, literal

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rbee.server.text.output.reasoning_formats import ReasoningFormat
    from rbee.server.text.output.tools import Tool


class Demand:
    """What a request demands of an output.

    Args:
        token_of: the id of a tag that is a token of the model; None for one that is text.
        tools: that may be called.
        required: there must be a call.
        parallel: there may be several.
        answer: the body of a rule that an answer without calls follows.
        reasoning_open: the prompt ends inside of the reasoning.
    """

    def __init__(
        self,
        token_of: Callable[[str], int | None],
        tools: Sequence[Tool],
        *,
        required: bool,
        parallel: bool,
        answer: str | None,
        reasoning_open: bool,
    ) -> None:
        self._lark = Lark(token_of)
        self._required = required
        self._answer = None if answer is None else self._lark.rule(answer)
        self._reasoning_open = reasoning_open
        self._writer = CallWriter(self._lark, tools, lambda tool: required or tool.strict, parallel=parallel)

    @property
    def is_empty(self) -> bool:
        """Any output does."""
        tools = self._writer.tools
        return (
            self._answer is None
            and not (tools and (self._required or not self._writer.parallel))
            and not any(tool.strict for tool in tools)
        )

    def tagged(self, reasoning: ReasoningFormat, tool_parser: str) -> str:
        """The grammar for a format with tags."""
        thoughts = self._thoughts(reasoning)
        space = SPACE if thoughts else ""  # in front of an answer that has a form, it would be a part of the answer
        if not self._writer.tools:
            return self._lark.source(f"{thoughts} {self._answer}")
        calls = CALL_GRAMMARS[tool_parser](self._writer)
        if self._answer is None or self._required:
            return self._lark.source(f"{thoughts} {space} {self._with_calls(calls)}")
        return self._lark.source(f"{thoughts} {either([self._answer, f'{space} {calls.alone}'])}")

    def _with_calls(self, calls: Calls) -> str:
        """Calls, and free text if they need not come."""
        if self._required:
            return calls.alone
        repeated = f"({calls.in_text})*" if self._writer.parallel else ""
        text = f"{calls.before_text} {repeated} {calls.text}"
        ways = [text, calls.alone]
        if not self._writer.parallel:
            ways.append(f"{calls.before_text} {calls.in_text}")
        return either(ways)

    def _thoughts(self, reasoning: ReasoningFormat) -> str:
        """The reasoning that an output begins with."""
        openers = reasoning.openers | reasoning.opening_phrases
        if not openers:
            return ""
        thoughts = self._lark.up_to(reasoning.closers | reasoning.closing_phrases)
        if self._reasoning_open:
            return thoughts
        return f"({SPACE} {self._lark.any_of(openers)} {thoughts})?"

    def harmony(self) -> str:
        """The grammar for gpt-oss."""
        tag = self._lark.tag
        channel, message = tag("<|channel|>"), tag("<|message|>")

        def before(channels: str) -> str:
            return f'({channel} {channels} {message} {self._lark.up_to(["<|end|>"])} {tag("<|start|>")} "assistant")*'

        calls = [
            f'{channel} {literal(f"commentary to=functions.{tool.name} ")} {tag("<|constrain|>")} "json" {message} '
            f"{self._writer.arguments(tool)}"
            for tool in self._writer.tools
        ]
        any_channel = '("analysis" | "commentary")'
        ways = [f"{before(any_channel)} {either(calls)}"] if calls else []
        if not (self._required and calls):
            # The channel commentary is shown as text: in front of an answer that has a form it would be a part of it.
            thoughts = before(any_channel if self._answer is None else '"analysis"')
            ways.append(f'{thoughts} {channel} "final" {message} {self._answer or TEXT}')
        return self._lark.source(either(ways))
