"""One choice of an answer: from the records of its ring to pieces of text that may be shown.

Owns what is text: no special or stop tokens, no stop strings, the prompt in front if it is echoed; and which piece each
token's logprobs belong to. A streamed answer and one that is not are made of the same pieces, see
`rbee.server.streams.replies`. Knows neither JSON nor sockets.

With logprobs every token is listed that the engine generated, as vLLM does it: a stop token too, and special tokens,
which show no text. An entry comes with the piece that shows the first character of its token; without any it waits for
the next piece, at the latest for the last one. A stop string takes with it the entries of the tokens that begin where
the text ends, or behind that.
"""

from __future__ import annotations

from bisect import bisect_left
from operator import attrgetter
from typing import TYPE_CHECKING, NamedTuple, Protocol

from rbee.messages import SIDE_RECORD, FinishReason
from rbee.server.link.sinks import finish_error
from rbee.server.protocols.openai.logprobs import TokenLogprob, TokenRecords, token_name

if TYPE_CHECKING:
    from collections.abc import Collection

    from rbee.server.errors import ApiError
    from rbee.server.link.engine_client import TokenStream
    from rbee.server.link.sinks import TokenBatch
    from rbee.server.protocols.openai.logprobs import ScoredToken
    from rbee.server.text.detokenizer import Detokenizer
    from rbee.server.text.stop_strings import StopStrings
    from rbee.server.text.tokenizer import TextCodec

FINISH_NAMES: dict[int, str] = {
    FinishReason.STOP: "stop",
    FinishReason.LENGTH: "length",
    FinishReason.DEADLINE: "deadline",
}
"""The ordinary ends in OpenAI's words, and one of ours."""

_offset = attrgetter("offset")


class Echo(NamedTuple):
    """A prompt that comes in front of its completion.

    Attributes:
        token_ids: of the prompt.
        text: as it is shown.
        offsets: where each token begins in it, in characters.
    """

    token_ids: list[int]
    text: str
    offsets: list[int]

    @classmethod
    def of(cls, token_ids: list[int], text: str | None, codec: TextCodec) -> Echo:
        """Find the tokens in `text`, or in what they decode to if the prompt was not given as text.

        A special token that was given as text is found by its name. A tokenizer that changes letters (to lower case,
        say) is taken not to change their number.
        """
        detokenizer = codec.detokenizer()
        pieces = [detokenizer.push(token_id) for token_id in token_ids]
        if text is None:
            text = "".join(pieces)
        offsets, end = [], 0
        for token_id, piece in zip(token_ids, pieces, strict=True):
            offsets.append(end)
            name = piece or token_name(codec.token_bytes(token_id))
            if piece or text.startswith(name, end):
                end = min(end + len(name), len(text))
        return cls(token_ids, text, offsets)


class TokenText:
    """The text of one sequence as it may be shown: no special or stop tokens, no stop strings.

    Attributes:
        num_tokens: pushed so far.
        num_decoded: characters that they stand for, an echoed prompt's included.
        num_shown: those of them that may be shown.
        stopped: a stop string is complete: no more text.
    """

    def __init__(
        self,
        detokenizer: Detokenizer,
        stops: StopStrings | None = None,
        stop_token_ids: Collection[int] = (),
        *,
        min_tokens: int = 0,
        echo: Echo | None = None,
    ) -> None:
        """Start with no tokens.

        Args:
            detokenizer: for this sequence alone.
            stops: end the text.
            stop_token_ids: tokens that are not shown.
            min_tokens: a stop string that one of so many first tokens completes is ordinary text.
            echo: what the text follows; its first word may begin with a space then, and stop strings begin after it.
        """
        self._detokenizer = detokenizer
        self._stops = stops
        self._stop_token_ids = frozenset(stop_token_ids)
        self._min_tokens = min_tokens
        self.num_tokens = 0
        self.num_decoded = self.num_shown = 0
        self.stopped = False
        if echo is not None:
            for token_id in echo.token_ids:
                detokenizer.push(token_id)
            self.num_decoded = self.num_shown = len(echo.text)

    def push(self, token_id: int) -> str:
        """The text that can be shown because of this token."""
        self.num_tokens += 1
        if token_id in self._stop_token_ids:
            return ""
        return self._show(self._detokenizer.push(token_id))

    def flush(self) -> str:
        """The text that had to wait for a next token which will not come."""
        text = self._show(self._detokenizer.flush())
        if self._stops is not None and not self.stopped:
            held = self._stops.flush()
            self.num_shown += len(held)
            text += held
        return text

    def _show(self, text: str) -> str:
        self.num_decoded += len(text)
        if self._stops is not None and text:
            text, self.stopped = self._stops.push(text, may_end=self.num_tokens > self._min_tokens)
        self.num_shown += len(text)
        return text


class Piece(NamedTuple):
    """What a choice shows at once.

    Attributes:
        text: never empty, but in the last piece.
        num_tokens: output tokens of the choice so far.
        committed_ns: when the engine published the last of them, CLOCK_MONOTONIC; None if no token brought this piece.
        entries: the tokens that begin to show here.
    """

    text: str
    num_tokens: int
    committed_ns: int | None
    entries: list[TokenLogprob]


class PieceSink(Protocol):
    """The reply that a choice belongs to."""

    def show(self, choice: ChoiceSink, pieces: list[Piece], reason: int) -> None:
        """What one drain adds to a choice. With a `reason`, a FinishReason, the last piece is its end, even if empty.

        The list is the reply's to keep.
        """

    def fail(self, error: ApiError) -> None:
        """Nothing more will come, for any choice, and this is why."""


class ChoiceSink:
    """The `TokenSink` of one choice. Its reply does not know it, so that they are not each other's garbage.

    Attributes:
        index: of the choice in its answer.
        stream: set by whoever submits it.
        cached_tokens: of the prompt; None until the engine has said so.
    """

    stream: TokenStream

    def __init__(self, index: int, reply: PieceSink, text: TokenText, *, report_cached: bool = False) -> None:
        """Start with nothing; `reply` hears of the pieces of `text`.

        With `report_cached` the first record is the number of cached tokens (`Submit.report_cached`): a choice that a
        stop string ends does not hear of the engine's finish.
        """
        self.index = index
        self._report_cached = report_cached
        self.cached_tokens: int | None = None
        self._reply = reply
        self._text = text

    @property
    def num_tokens(self) -> int:
        """Output tokens so far, a stop token included."""
        return self._text.num_tokens

    def deliver(self, batch: TokenBatch) -> None:
        """See `TokenSink`."""
        reason = batch.reason
        if self._report_cached and self.cached_tokens is None and batch.token_ids:
            self.cached_tokens = batch.token_ids[0] & ~SIDE_RECORD
            batch = batch.without_first()
        if reason:
            self.cached_tokens = batch.cached_tokens
        pieces: list[Piece] = []
        committed_ns = self._take(batch, pieces)
        if self._text.stopped:
            self.stream.cancel()
            reason = FinishReason.STOP
        if reason:
            pieces.append(self._last_piece(pieces, committed_ns))
            reason = self._end_reason(reason)
        self._reply.show(self, pieces, reason)

    def fail(self, error: ApiError) -> None:
        """See `TokenSink`."""
        self._reply.fail(error)

    def _take(self, batch: TokenBatch, pieces: list[Piece]) -> int | None:
        """Append what a batch shows, up to a stop string; the commit time of the last token that was taken."""
        text, committed_ns = self._text, None
        for token_id, committed_ns in zip(batch.token_ids, batch.commit_ns, strict=True):
            shown = text.push(token_id)
            if shown:
                pieces.append(Piece(shown, text.num_tokens, committed_ns, []))
            if text.stopped:
                break
        return committed_ns

    def _last_piece(self, pieces: list[Piece], committed_ns: int | None) -> Piece:
        """All that is left: it joins the last token's piece, if that token has one."""
        text = "" if self._text.stopped else self._text.flush()
        entries = self._last_entries()
        if pieces and pieces[-1].num_tokens == self._text.num_tokens:
            last = pieces.pop()
            return last._replace(text=last.text + text, entries=last.entries + entries)
        return Piece(text, self._text.num_tokens, committed_ns, entries)

    def _last_entries(self) -> list[TokenLogprob]:
        return []

    def _end_reason(self, reason: int) -> int:
        """As the client sees it: a stop string counts, even one that only the end completed."""
        return FinishReason.STOP if self._text.stopped and reason in FINISH_NAMES else reason


class AnnotatedChoiceSink(ChoiceSink):
    """A choice with logprobs, or with its prompt in front, or both."""

    def __init__(
        self,
        index: int,
        reply: PieceSink,
        text: TokenText,
        records: TokenRecords,
        *,
        report_cached: bool = False,
        logprobs: bool = False,
        echo: Echo | None = None,
        show_output: bool = True,
    ) -> None:
        """Start with nothing.

        Args:
            index: see `ChoiceSink`, as for the next two.
            reply: hears of the pieces.
            text: of this choice; with an echo it follows that.
            records: of its ring.
            report_cached: see `ChoiceSink`.
            logprobs: the pieces have entries.
            echo: comes in front, as a piece of its own.
            show_output: False: the echo is all that the client wants, and no token of the output is shown or counted.
        """
        super().__init__(index, reply, text, report_cached=report_cached)
        self._records = records
        self._logprobs = logprobs
        self._echo = echo
        self._show_output = show_output
        self._entries: list[TokenLogprob] = []  # of tokens whose text has not begun to show
        if echo is not None and logprobs:
            self._entries.append(TokenLogprob(echo.token_ids[0], None, [], 0))

    def _take(self, batch: TokenBatch, pieces: list[Piece]) -> int | None:
        committed_ns: int | None = None
        for token in self._records.take(batch):
            committed_ns = token.committed_ns
            if token.of_prompt:
                self._take_prompt(token)
            else:
                self._take_output(token, pieces)
            if self._text.stopped:
                break
        return committed_ns

    def _take_prompt(self, token: ScoredToken) -> None:
        assert self._echo is not None, "a prompt is scored to be echoed"
        offset = self._echo.offsets[len(self._entries)]
        self._entries.append(TokenLogprob(token.token_id, token.logprob, token.top, offset))

    def _take_output(self, token: ScoredToken, pieces: list[Piece]) -> None:
        if self._echo is not None:
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
        if text:
            pieces.append(Piece(text, self._text.num_tokens, token.committed_ns, self._due_entries()))

    def _due_entries(self) -> list[TokenLogprob]:
        """Those of the tokens that have begun to show."""
        end = bisect_left(self._entries, self._text.num_shown, key=_offset)
        due, self._entries = self._entries[:end], self._entries[end:]
        return due

    def _last_entries(self) -> list[TokenLogprob]:
        return self._due_entries() if self._text.stopped else self._entries

    def _end_reason(self, reason: int) -> int:
        """A token that is not shown has not stopped anything either."""
        reason = super()._end_reason(reason)
        return FinishReason.LENGTH if reason == FinishReason.STOP and not self._show_output else reason


class Ends:
    """How the choices of one reply end, and what they add up to.

    Attributes:
        num_open: choices that have not ended.
        completion_tokens: output tokens of those that have, stop tokens included.
        cached_tokens: of the prompt, as the first choice found it; None while, or if, nobody said so.
    """

    def __init__(self, num_choices: int) -> None:
        self.num_open = num_choices
        self.completion_tokens = 0
        self.cached_tokens: int | None = None
        self._any_tokens = False

    def note(self, choice: ChoiceSink, reason: int) -> ApiError | None:
        """A choice has been shown, and has ended if there is a FinishReason.

        Returns:
            The error that is the end of the whole reply; None for an ordinary end, or for none.
        """
        self._any_tokens = self._any_tokens or choice.num_tokens > 0
        if not reason:
            return None
        if reason != FinishReason.DEADLINE or not self._any_tokens:  # then what there is counts
            error = finish_error(reason)
            if error is not None:
                self.num_open = 0
                return error
        self.num_open -= 1
        self.completion_tokens += choice.num_tokens
        if choice.index == 0:
            self.cached_tokens = choice.cached_tokens
        return None
