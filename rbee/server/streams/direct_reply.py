"""A streamed reply that costs no Python per token: the drain renders its frames and sends them to its socket.

Owns which streams can be written so, and what follows when the socket does not take everything. The bytes are those of
`rbee.server.streams.replies.StreamedReply`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from rbee.messages import FinishReason
from rbee.server.streams.live import LiveReply
from rbee.server.streams.outcome import Outcome, finish_refusal
from rbee.transport import Outlet

if TYPE_CHECKING:
    from rbee.server.http.writer import Writer
    from rbee.server.streams.dialect import Dialect
    from rbee.server.streams.generation import Generation
    from rbee.server.text.detokenizer import TokenTable


class DirectReply(LiveReply):
    """A `DirectSink`: it receives the events of the socket, and the tokens go past it."""

    def __init__(self, writer: Writer, dialect: Dialect, outlet: Outlet) -> None:
        self.outlet = outlet  # to be submitted with this sink
        super().__init__(writer, dialect)

    def on_blocked(self, rest: bytes) -> None:
        """Let the event loop write the rest; when it has, the socket calls `on_resume`."""
        self._writer.write_rest(rest)
        if not self._writer.paused:
            self.sequences.resume()

    def on_broken(self) -> None:
        self._writer.abort()

    def on_finish(self, reason: int, cached_tokens: int) -> None:
        refusal = finish_refusal(reason)  # None: an ordinary end, which the drain has written if its template has it
        if refusal is not None and not (reason == FinishReason.DEADLINE and self.outlet.num_tokens):
            self._write(self._error_frames(refusal))
        elif not self.outlet.has_end and (frames := self._dialect.finish(self._outcome(reason, cached_tokens))):
            self._write(frames)
        self._end()

    def _outcome(self, reason: int, cached_tokens: int) -> Outcome:
        """What the drain has written."""
        outlet, outcome = self.outlet, Outcome(0)
        outcome.completion_tokens, outcome.cached_tokens = outlet.num_tokens, cached_tokens
        outcome.reason, outcome.num_frames = reason, outlet.num_frames
        outcome.text = msgspec.json.decode(outlet.text, type=str)
        if self.account is not None:
            outcome.timings = self.account.timings()
        return outcome

    def _frames_so_far(self) -> int:
        return self.outlet.num_frames

    def _last_written(self) -> float:
        return max(super()._last_written(), self.outlet.written_ns / 1e9)


def make_outlet(writer: Writer, table: TokenTable | None, dialect: Dialect, generation: Generation) -> Outlet | None:
    """The outlet of a stream of one choice with nothing but its text.

    Returns None if the request (`Generation.is_plain`), its dialect, its vocabulary or its socket allows none.
    """
    descriptor = writer.descriptor
    if table is None or descriptor is None or not generation.is_plain:
        return None
    template = dialect.template()
    if template is None:
        return None
    return Outlet(
        descriptor,
        table.vocabulary,
        template,
        strip=table.strip,
        prompt_tokens=len(generation.prompt),
        stop_token_ids=list(generation.sampling.stop_token_ids),
        received_ns=generation.received_ns,
        keep_text=generation.keep_text,
    )
