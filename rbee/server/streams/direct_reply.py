"""A streamed reply that costs no Python per token: the drain renders its frames and sends them to its socket.

Owns which streams can be written so, and what follows when the socket does not take everything. The bytes are those of
`rbee.server.streams.replies.StreamedReply`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

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
        refusal = finish_refusal(reason)  # None: an ordinary end, which is written already, but for timings
        if refusal is not None and not (reason == FinishReason.DEADLINE and self.outlet.num_tokens):
            self._write(self._error_frames(refusal))
        elif self.account is not None and (timings := self.account.timings()) is not None:
            outcome = Outcome(0)
            outcome.completion_tokens, outcome.cached_tokens = self.outlet.num_tokens, cached_tokens
            outcome.reason = reason
            outcome.timings = timings
            self._write(self._dialect.finish(outcome))
        self._end()

    def _last_written(self) -> float:
        return max(super()._last_written(), self.outlet.written_ns / 1e9)


def make_outlet(writer: Writer, table: TokenTable | None, dialect: Dialect, generation: Generation) -> Outlet | None:
    """The outlet of a stream of one choice with nothing but its text.

    Returns None if the request (stop strings, logprobs, an echo), its dialect, its vocabulary or its socket allows
    none.
    """
    descriptor = writer.descriptor
    plain = generation.n == 1 and generation.echo is None and not generation.stops and not generation.has_logprobs
    if table is None or descriptor is None or not plain:
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
    )
