"""A checked request, ready to be submitted.

Owns nothing: a protocol's reader hands it to `rbee.server.streams`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING, NamedTuple

from rbee.server.text.tool_use import NO_TOOLS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rbee.sampling_params import SamplingParams
    from rbee.server.text.grammars import Suspects
    from rbee.server.text.output import OutputFormat, OutputParser, Tool
    from rbee.server.text.token_text import Echo
    from rbee.server.text.tool_use import ToolUse


class Prompt(NamedTuple):
    """What some choices continue."""

    token_ids: list[int]
    echo: Echo | None = None  # itself, if it comes before its completions


class ReasoningPlace(Enum):
    """Where an answer has the reasoning."""

    APART = auto()
    IN_TEXT = auto()  # with its tags, as the model writes it
    NOWHERE = auto()


@dataclass(frozen=True)
class ReasoningView:
    """How an answer shows the reasoning."""

    place: ReasoningPlace = ReasoningPlace.APART
    at_once: bool = False  # in one piece, once it has ended


APART = ReasoningView()


@dataclass(frozen=True, kw_only=True)
class OutputPlan:
    """How the output of each choice is parsed."""

    format: OutputFormat
    tools: tuple[Tool, ...] = ()  # that may be called
    reasoning_open: bool = False  # the prompt ends inside of the reasoning
    reasoning: ReasoningView = APART

    def parser(self) -> OutputParser:
        """For one choice."""
        return self.format.parser(
            tools=self.tools,
            reasoning_open=self.reasoning_open,
            keep_tags=self.reasoning.place is ReasoningPlace.IN_TEXT,
        )


@dataclass(frozen=True, kw_only=True)
class Generation:
    """What the engine is asked for, and what of it is shown.

    Each prompt has `n` choices: choice j of prompt i is sequence i * n + j.
    """

    received_ns: int  # when the server had the whole request, CLOCK_MONOTONIC
    prompt: list[int]  # token ids; of several prompts the first one's
    sampling: SamplingParams  # of a prompt's choice 0; the seed of choice j is j more
    stops: list[str]  # stop strings
    n: int = 1  # choices of each prompt
    echo: Echo | None = None  # the prompt, if it comes before the completion
    more_prompts: tuple[Prompt, ...] = ()  # behind the first one
    show_output: bool = True  # False for max_tokens 0: sampling.max_tokens is 1 then, and the token is dropped
    include_stop: bool = False  # the stop string, or the text of the stop token, is shown
    output: OutputPlan | None = None  # None: the output is text, and nothing else
    skip_special_tokens: bool = True  # False: special tokens are shown by their names; an output's parser sees them all
    spaces_between_special_tokens: bool = True  # as the tokenizer writes them; False: none
    list_tokens: bool = False  # each piece lists its tokens, also without logprobs
    priority: int = 0  # smaller runs earlier
    deadline_ns: int = 0  # when it ends at the latest, CLOCK_MONOTONIC; 0 is never
    cache_salt: str = ""  # only requests with the same salt share cached prefixes
    timings: bool = False  # the answer says how long it took
    keep_text: bool = False  # the end of its stream repeats all of the text
    tool_use: ToolUse = NO_TOOLS  # which tools its text may, or must, call
    grammar: str = ""  # of each output, see `rbee.grammars`; "" is none
    grammar_param: str = ""  # the field that asks for it
    grammar_parts: Sequence[Suspects] = ()  # parts of it that are grammars too, to be blamed for what is wrong with it
    grammar_end_ids: tuple[int, ...] = ()  # see SamplingParams

    @property
    def prompts(self) -> list[Prompt]:
        return [Prompt(self.prompt, self.echo), *self.more_prompts]

    @property
    def num_sequences(self) -> int:
        return self.n * (1 + len(self.more_prompts))

    @property
    def num_prompt_tokens(self) -> int:
        """Of all prompts; each counts once, whatever n is."""
        return sum(len(prompt.token_ids) for prompt in self.prompts)

    @property
    def has_logprobs(self) -> bool:
        return self.sampling.num_logprobs is not None

    @property
    def scores_prompts(self) -> bool:
        return self.sampling.num_prompt_logprobs is not None

    @property
    def is_plain(self) -> bool:
        """Whether it is one sequence of which nothing is shown but its text, as the vocabulary writes it."""
        return (
            self.num_sequences == 1
            and self.echo is None
            and not (self.stops or self.include_stop or self.list_tokens)
            and self.skip_special_tokens
            and self.output is None
            and not (self.has_logprobs or self.scores_prompts)
        )
