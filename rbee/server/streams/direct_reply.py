"""A streamed reply that costs no Python per token: the drain renders its frames and sends them to its socket.

Owns which streams can be written like that, and what to do when the socket does not take everything. The bytes are
those that `rbee.server.streams.replies.StreamedReply` would write; `native/include/rbee/frame_stream.h` makes them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rbee.messages import FinishReason
from rbee.server.link.sinks import finish_error
from rbee.server.streams.replies import LiveReply
from rbee.transport import Outlet

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rbee.server.http.protocol import StreamWriter
    from rbee.server.protocols.openai.frames import Frames
    from rbee.server.protocols.openai.schemas import StreamOptions
    from rbee.server.text.detokenizer import TokenTable


class DirectReply(LiveReply):
    """A `DirectSink`. `LiveReply` hears of the socket, as for any stream; of the tokens nobody does.

    Attributes:
        outlet: to be submitted with this sink.
    """

    def __init__(self, writer: StreamWriter, outlet: Outlet) -> None:
        super().__init__(writer)
        self.outlet = outlet

    def on_blocked(self, rest: bytes) -> None:
        """See `DirectSink`. The event loop writes the rest; when it has, the socket tells `on_resume`."""
        self._writer.write_rest(rest)
        if not self._writer.paused:
            self.stream.resume()

    def on_broken(self) -> None:
        """See `DirectSink`."""
        self._writer.abort()

    def on_finish(self, reason: int, cached_tokens: int) -> None:  # noqa: ARG002 - the drain has written it
        """See `DirectSink`. An ordinary end is written already."""
        error = finish_error(reason)
        if error is not None and not (reason == FinishReason.DEADLINE and self.outlet.num_tokens):
            self._write(self._error_frames(error))
        self._end()

    def _last_written(self) -> float:
        return max(super()._last_written(), self.outlet.written_ns / 1e9)


def make_outlet(
    writer: StreamWriter,
    table: TokenTable | None,
    frames: Frames,
    options: StreamOptions,
    *,
    prompt_tokens: int,
    stop_token_ids: Iterable[int],
) -> Outlet | None:
    """The outlet of a stream of one choice with nothing but its text; None if its vocabulary or its socket allows none.

    It knows neither stop strings nor logprobs nor an echo.
    """
    descriptor = writer.descriptor
    if table is None or descriptor is None:
        return None
    return Outlet(
        descriptor,
        table.vocabulary,
        frames.template(
            prompt_tokens,
            usage=options.include_usage,
            running_usage=options.continuous_usage_stats,
            timing=options.include_timing,
        ),
        strip=table.strip,
        prompt_tokens=prompt_tokens,
        stop_token_ids=list(stop_token_ids),
    )
