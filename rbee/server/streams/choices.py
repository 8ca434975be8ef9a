"""One choice of an answer: from the records of its ring to pieces that may be shown.

Owns which piece each token's logprobs belong to (docs/architecture.md, "Logprobs"). Streamed and collected answers are
made of the same pieces. Knows neither protocols nor sockets.
"""

from __future__ import annotations

from bisect import bisect_left
from operator import attrgetter
from typing import TYPE_CHECKING, Protocol

from rbee.messages import SIDE_RECORD, FinishReason
from rbee.server.streams.outcome import ORDINARY_ENDS
from rbee.server.streams.parsed_output import ParsedOutput
from rbee.server.streams.pieces import Part, Piece
from rbee.server.streams.records import TokenLogprob, TokenRecords
from rbee.server.text.stop_strings import StopStrings
from rbee.server.text.token_text import TokenText

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rbee.server.errors import Refusal
    from rbee.server.link.sequences import SequenceHandle
    from rbee.server.link.sinks import TokenBatch
    from rbee.server.streams.account import GenerationAccount
    from rbee.server.streams.generation import Generation, Prompt
    from rbee.server.streams.records import ScoredToken
    from rbee.server.text.token_text import Echo
    from rbee.server.text.tokenizer import TextCodec

_offset = attrgetter("offset")


class PieceSink(Protocol):
    """The reply that a choice belongs to."""

    def show(self, choice: ChoiceSink, pieces: list[Piece], reason: int) -> None:
        """Take what one drain adds to a choice; the list is the reply's to keep.

        With a `reason`, a FinishReason, the last piece is the choice's end, even if it is empty.
        """

    def fail(self, refusal: Refusal) -> None:
        """End every choice."""


class ChoiceSink:
    """The `TokenSink` of one choice."""

    sequence: SequenceHandle  # set after submission
    account: GenerationAccount | None = None  # the same
    prompt_entries: Sequence[TokenLogprob] = ()  # of the tokens of a prompt that is scored, as far as they have come

    def __init__(
        self,
        index: int,
        reply: PieceSink,
        text: TokenText,
        *,
        report_cached: bool = False,
        output: ParsedOutput | None = None,
    ) -> None:
        self.index = index
        self._report_cached = report_cached  # a first record holds cached_tokens, see `rbee.messages.Submit`
        self.cached_tokens: int | None = None  # of the prompt; None until that is known
        self._reply = reply
        self._text = text
        self._output = output  # None: all of it is text

    @property
    def num_tokens(self) -> int:
        """Output tokens so far, a stop token included."""
        return self._text.num_tokens

    @property
    def stop_string(self) -> str | None:
        """The stop string that has ended the choice."""
        return self._text.stop_string

    @property
    def parts(self) -> Sequence[Part]:
        """Of the output so far, if it is parsed; see `Part`."""
        return () if self._output is None else self._output.parts

    @property
    def reasoning_tokens(self) -> int | None:
        """Output tokens that show reasoning, if the output is parsed."""
        return None if self._output is None else self._output.reasoning_tokens

    def deliver(self, batch: TokenBatch) -> int:
        reason = batch.reason
        if self._report_cached and self.cached_tokens is None and batch.token_ids:
            self.cached_tokens = batch.token_ids[0] & ~SIDE_RECORD
            batch = batch.without_first()
        if reason:
            self.cached_tokens = batch.cached_tokens
        pieces: list[Piece] = []
        committed_ns = self._take(batch, pieces)
        if self.account is not None and (reason or self._text.stopped):
            self.account.show(self.index, self._text.num_tokens, self.cached_tokens)
        if self._text.stopped:
            self.sequence.cancel(FinishReason.STOP)
            reason = FinishReason.STOP
        if reason:
            pieces.append(self._last_piece(pieces, committed_ns))
            reason = self._end_reason(reason)
        self._reply.show(self, pieces, reason)
        return reason

    def fail(self, error: Refusal) -> None:
        self._reply.fail(error)

    def _take(self, batch: TokenBatch, pieces: list[Piece]) -> int | None:
        """Append what a batch shows, up to a stop string. Returns the commit time of the last token taken."""
        text, output, committed_ns = self._text, self._output, None
        for token_id, committed_ns in zip(batch.token_ids, batch.commit_ns, strict=True):
            shown = text.push(token_id)
            if shown:
                if output is None:
                    pieces.append(Piece(shown, text.num_tokens, committed_ns, []))
                else:
                    output.push(pieces, shown, text.num_tokens, committed_ns, [])
            if text.stopped:
                break
        return committed_ns

    def _last_piece(self, pieces: list[Piece], committed_ns: int | None) -> Piece:
        """All that is left, joined to the last token's piece if that token has one."""
        text = "" if self._text.stopped else self._text.flush()
        entries = self._last_entries()
        if self._output is not None:
            return self._output.finish(pieces, text, self._text.num_tokens, committed_ns, entries)
        if pieces and pieces[-1].num_tokens == self._text.num_tokens:
            last = pieces.pop()
            return last._replace(text=last.text + text, entries=last.entries + entries)
        return Piece(text, self._text.num_tokens, committed_ns, entries)

    def _last_entries(self) -> list[TokenLogprob]:
        return []

    def _end_reason(self, reason: int) -> int:
        """As shown: a stop string counts, even one that only the flush completed."""
        return FinishReason.STOP if self._text.stopped and reason in ORDINARY_ENDS else reason


class LogprobsChoice(ChoiceSink):
    """A choice that lists its tokens, scores its prompt, or has it in front.

    Args:
        index, reply, text, report_cached, output: as for every choice.
        records: of its ring.
        logprobs: list its tokens.
        echo: the prompt in front; its tokens are listed too, if it is scored.
        show_output: False: no output is shown or counted.
        first_prompt_token: of the prompt, which has no logprob.
    """

    def __init__(
        self,
        index: int,
        reply: PieceSink,
        text: TokenText,
        records: TokenRecords,
        *,
        report_cached: bool = False,
        output: ParsedOutput | None = None,
        logprobs: bool = False,
        echo: Echo | None = None,
        show_output: bool = True,
        first_prompt_token: int = 0,
    ) -> None:
        super().__init__(index, reply, text, report_cached=report_cached, output=output)
        self._records = records
        self._logprobs = logprobs
        self._echo = echo
        self._show_output = show_output
        self._entries: list[TokenLogprob] = []  # of tokens whose text has not begun to show
        self.prompt_entries: list[TokenLogprob] = []
        if records.scores_prompt:
            self._add_prompt_entry(first_prompt_token, None, [], None)

    def _take(self, batch: TokenBatch, pieces: list[Piece]) -> int | None:
        committed_ns: int | None = None
        for token in self._records.take(batch):
            committed_ns = token.committed_ns
            if token.rank is not None:
                self._add_prompt_entry(token.token_id, token.logprob, token.top, token.rank)
            else:
                self._take_output(token, pieces)
            if self._text.stopped:
                break
        return committed_ns

    def _add_prompt_entry(
        self, token_id: int, logprob: float | None, top: list[tuple[int, float]], rank: int | None
    ) -> None:
        offset = 0 if self._echo is None else self._echo.offsets[len(self.prompt_entries)]
        self.prompt_entries.append(TokenLogprob(token_id, logprob, top, offset, rank))

    def _take_output(self, token: ScoredToken, pieces: list[Piece]) -> None:
        if self._echo is not None:
            self._entries = self._records.echoed(self.prompt_entries)
            if self._echo.text:
                pieces.append(Piece(self._echo.text, 0, token.committed_ns, self._entries))
                self._entries = []
            self._echo = None
        if not self._show_output:
            return
        offset = self._text.num_decoded
        text = self._text.push(token.token_id)
        if self._logprobs:
            self._entries.append(TokenLogprob(token.token_id, token.logprob, token.top, offset))
        if not text:
            return
        if self._output is None:
            pieces.append(Piece(text, self._text.num_tokens, token.committed_ns, self._due_entries()))
        else:
            self._output.push(pieces, text, self._text.num_tokens, token.committed_ns, self._due_entries())

    def _due_entries(self) -> list[TokenLogprob]:
        end = bisect_left(self._entries, self._text.num_shown, key=_offset)
        due, self._entries = self._entries[:end], self._entries[end:]
        return due

    def _last_entries(self) -> list[TokenLogprob]:
        return self._due_entries() if self._text.stopped else self._entries

    def _end_reason(self, reason: int) -> int:
        reason = super()._end_reason(reason)  # a token that is not shown stops nothing
        return FinishReason.LENGTH if reason == FinishReason.STOP and not self._show_output else reason


def make_choices(
    codec: TextCodec, generation: Generation, reply: PieceSink, *, keep_text: bool = False
) -> list[ChoiceSink]:
    """The sinks of all choices of a generation; with `keep_text` their parts have their text."""
    prompts, n = generation.prompts, generation.n
    return [
        _choice(index, codec, generation, prompts[index // n], reply, keep_text=keep_text)
        for index in range(generation.num_sequences)
    ]


def _choice(
    index: int, codec: TextCodec, generation: Generation, prompt: Prompt, reply: PieceSink, *, keep_text: bool
) -> ChoiceSink:
    sampling, echo, plan = generation.sampling, prompt.echo, generation.output
    if echo is None:
        detokenizer = codec.detokenizer(
            skip_special_tokens=generation.skip_special_tokens and plan is None,
            spaces_between_special_tokens=generation.spaces_between_special_tokens,
        )
    else:
        detokenizer = echo.detokenizer.fork()
    text = TokenText(
        detokenizer,
        StopStrings(generation.stops, include=generation.include_stop) if generation.stops else None,
        () if generation.include_stop else sampling.stop_token_ids,
        min_tokens=sampling.min_tokens,
        num_echoed=0 if echo is None else len(echo.text),
        token_names=None if plan is None else plan.format.token_names,
    )
    output = None if plan is None else ParsedOutput(plan, keep_text=keep_text)
    lists_tokens = generation.has_logprobs or generation.list_tokens
    if echo is None and not (lists_tokens or generation.scores_prompts):
        return ChoiceSink(index, reply, text, report_cached=bool(generation.stops), output=output)
    return LogprobsChoice(
        index,
        reply,
        text,
        TokenRecords(sampling, prompt.token_ids),
        report_cached=bool(generation.stops),
        output=output,
        logprobs=lists_tokens,
        echo=echo,
        show_output=generation.show_output,
        first_prompt_token=prompt.token_ids[0],
    )
