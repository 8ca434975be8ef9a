"""How the choices of one reply end, and what they add up to.

Owns which ends are ordinary, and the refusal behind every other. Does not know how a protocol names them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from rbee.messages import FinishReason
from rbee.server.errors import Refusal, RefusalKind, deadline_passed
from rbee.server.streams.pieces import Part
from rbee.server.text.output import OutputKind

if TYPE_CHECKING:
    from collections.abc import Sequence

# These leave an answer complete; a deadline does so only after the first token.
ORDINARY_ENDS = frozenset({FinishReason.STOP, FinishReason.LENGTH, FinishReason.DEADLINE})


class Countable(Protocol):
    """A choice, as its outcome counts it; see `rbee.server.streams.choices.ChoiceSink`."""

    @property
    def index(self) -> int: ...

    @property
    def num_tokens(self) -> int: ...

    @property
    def cached_tokens(self) -> int | None: ...

    @property
    def stop_string(self) -> str | None: ...

    @property
    def parts(self) -> Sequence[Part]: ...

    @property
    def reasoning_tokens(self) -> int | None: ...


class Outcome:
    """What has become of the choices of one reply so far. Each prompt has `per_prompt` of them; None: there is one."""

    def __init__(self, num_choices: int, per_prompt: int | None = None) -> None:
        self._per_prompt = per_prompt or num_choices
        self.num_open = num_choices  # choices that have not ended
        self.completion_tokens = 0  # output tokens of those that have, stop tokens included
        self.reasoning_tokens: int | None = None  # of these, if the outputs are parsed
        # Of the prompts, as the first choice of each found it; None until one is known.
        self.cached_tokens: int | None = None
        self.any_tokens = False  # of any choice
        self.reason = 0  # the FinishReason of the choice that ended last
        self.stop_string: str | None = None  # that ended this choice; None: something else did
        self.num_frames = 0  # of a stream that has ended: those with text
        self.text = ""  # of a stream with `Generation.keep_text` that has ended, if its output was not parsed
        self.parsed: Sequence[Part] = ()  # the parts of the choice that ended last, if it was and shows anything
        self.timings: dict[str, float] | None = None  # if the request asks for them; see `GenerationAccount.timings`

    @property
    def parts(self) -> Sequence[Part]:
        """What the choice of a stream has shown: at least one, as in `CollectedChoice.parts`."""
        return self.parsed or [Part(OutputKind.TEXT, self.text)]

    def end(self, choice: Countable, reason: int) -> Refusal | None:
        """Count the end of a choice. Returns the refusal that ends the whole reply, or None."""
        if reason != FinishReason.DEADLINE or not (self.any_tokens or choice.num_tokens):
            refusal = finish_refusal(reason)
            if refusal is not None:
                self.num_open = 0
                return refusal
        self.num_open -= 1
        self.reason, self.stop_string, self.parsed = reason, choice.stop_string, choice.parts
        self.completion_tokens += choice.num_tokens
        if choice.reasoning_tokens is not None:
            self.reasoning_tokens = (self.reasoning_tokens or 0) + choice.reasoning_tokens
        if choice.index % self._per_prompt == 0 and choice.cached_tokens is not None:
            self.cached_tokens = (self.cached_tokens or 0) + choice.cached_tokens
        return None


def finish_refusal(reason: int) -> Refusal | None:
    """The refusal behind a finish that leaves no complete answer, else None. DEADLINE: before the first token."""
    match reason:
        case FinishReason.ABORT:
            message = "The engine stopped before this request was finished."
            return Refusal(RefusalKind.UNAVAILABLE, message, code="aborted")
        case FinishReason.ERROR:
            message = "The engine failed on this request; other requests are not affected."
            return Refusal(RefusalKind.FAILED, message, code="engine_error")
        case FinishReason.GRAMMAR:
            message = (
                "The output could not be held to the form that was asked for: its grammar is beyond a limit, or other "
                "parameters exclude all that it allows. Ask for a simpler form; the engine's log has the reason."
            )
            return Refusal(RefusalKind.FAILED, message, code="grammar_failed")
        case FinishReason.DEADLINE:
            return deadline_passed()
        case FinishReason.SLOW_READER:
            message = "The client read too slowly: its tokens had no room for longer than --slow-reader-timeout."
            return slow_reader(message)
        case _:
            return None


def slow_reader(message: str) -> Refusal:
    """The refusal for a client that does not read its stream."""
    return Refusal(RefusalKind.TIMED_OUT, message, code="slow_reader")
