"""What becomes of one request's tokens: SSE frames while they come, or one text at the end.

Owns the way from token ids to bytes and that each request has exactly one end. A reply is the sink of its tokens and
the listener of its socket; it runs inside the drain callback. Does not know routes or the engine.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from rbee.messages import FinishReason
from rbee.server import sse
from rbee.server.engine_client import finish_error

if TYPE_CHECKING:
    from collections.abc import Collection

    from rbee.server.detokenizer import Detokenizer
    from rbee.server.engine_client import TokenStream
    from rbee.server.errors import ApiError
    from rbee.server.http_protocol import StreamWriter
    from rbee.server.schemas import StreamOptions
    from rbee.server.sse import Frames
    from rbee.server.stop_strings import StopStrings

KEEP_ALIVE_SILENCE = 15.0  # seconds


class TokenText:
    """The text of one sequence as it may be shown: no special or stop tokens, no stop strings."""

    def __init__(self, detokenizer: Detokenizer, stops: StopStrings | None, stop_token_ids: Collection[int]) -> None:
        self._detokenizer = detokenizer
        self._stops = stops
        self._stop_token_ids = frozenset(stop_token_ids)
        self.num_tokens = 0
        self.stopped = False  # a stop string is complete: no more text

    def push(self, token_id: int) -> str:
        """The text that can be shown because of this token."""
        self.num_tokens += 1
        if token_id in self._stop_token_ids:
            return ""
        text = self._detokenizer.push(token_id)
        if self._stops is not None and text:
            text, self.stopped = self._stops.push(text)
        return text

    def flush(self) -> str:
        """The text that had to wait for a next token which will not come."""
        text = self._detokenizer.flush()
        if self._stops is None:
            return text
        text, self.stopped = self._stops.push(text)
        return text if self.stopped else text + self._stops.flush()


class Reply:
    """One accepted request, until its one end.

    Attributes:
        done: resolved when nothing more will be written or collected.
        stream: set by whoever submits the request.
    """

    stream: TokenStream

    def __init__(self, text: TokenText) -> None:
        self._text = text
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def on_closed(self) -> None:
        """The client is gone: nobody needs the rest."""
        self.stream.cancel()
        self._end()

    def _end(self) -> None:
        if not self.done.done():
            self.done.set_result(None)


class CollectedReply(Reply):
    """Gathers the whole text, for a response that is not streamed.

    Attributes:
        finish_reason: "stop" or "length" after an ordinary end.
        error: set after any other.
    """

    def __init__(self, text: TokenText) -> None:
        super().__init__(text)
        self._texts: list[str] = []
        self.finish_reason = ""
        self.error: ApiError | None = None

    @property
    def text(self) -> str:
        """All of it."""
        return "".join(self._texts)

    @property
    def completion_tokens(self) -> int:
        """Tokens generated, a stop token included."""
        return self._text.num_tokens

    def deliver(self, token_ids: list[int], commit_ns: list[int], reason: int) -> None:  # noqa: ARG002 - TokenSink
        """See `TokenSink`."""
        for token_id in token_ids:
            self._texts.append(self._text.push(token_id))
            if self._text.stopped:
                self.stream.cancel()
                reason = FinishReason.STOP
                break
        if reason:
            self.error = finish_error(reason)
            if not self._text.stopped:
                self._texts.append(self._text.flush())
            self.finish_reason = _finish_name(reason, self._text)
            self._end()

    def fail(self, error: ApiError) -> None:
        """See `TokenSink`."""
        self.error = error
        self._end()

    def on_pause(self) -> None:
        """Nothing is written before the end."""

    def on_resume(self) -> None:
        """Nothing is written before the end."""


class StreamedReply(Reply):
    """Writes a frame for each token that shows text, all frames of one drain in one write."""

    def __init__(
        self, text: TokenText, writer: StreamWriter, frames: Frames, options: StreamOptions, prompt_tokens: int
    ) -> None:
        super().__init__(text)
        self._writer = writer
        self._frames = frames
        self._options = options
        self._plain = not (options.include_timing or options.continuous_usage_stats)
        self._prompt_tokens = prompt_tokens
        self._written_at = time.monotonic()

    def deliver(self, token_ids: list[int], commit_ns: list[int], reason: int) -> None:
        """See `TokenSink`. The finish reason rides on the last token's frame, if that shows text."""
        push = self._text.push
        out: list[bytes] = []
        shown, extra = "", b""
        for token_id, committed_ns in zip(token_ids, commit_ns, strict=True):
            if shown:
                out.append(self._frames.text(shown, extra))
            shown = push(token_id)
            extra = b"" if self._plain else self._extra(committed_ns)
            if self._text.stopped:
                self.stream.cancel()
                reason = FinishReason.STOP
                break
        if reason:
            self._finish(out, shown, extra, reason)
        elif shown:
            out.append(self._frames.text(shown, extra))
        if out:
            self._write(b"".join(out))
        if reason:
            self._end()

    def fail(self, error: ApiError) -> None:
        """See `TokenSink`."""
        self._write(sse.error(error.envelope()) + sse.DONE)
        self._end()

    def on_pause(self) -> None:
        """The tokens wait in the ring, where they cost nothing."""
        self.stream.pause()

    def on_resume(self) -> None:
        """All that waited goes out in one write."""
        self.stream.resume()

    def keep_alive(self, now: float) -> None:
        """Write a comment if nothing has been written for long; `now` is time.monotonic()."""
        if now - self._written_at >= KEEP_ALIVE_SILENCE and not self._writer.paused:
            self._write(sse.KEEP_ALIVE)

    def _finish(self, out: list[bytes], shown: str, extra: bytes, reason: int) -> None:
        """Append what ends the stream: the last text, why it is the last, the token counts, [DONE]."""
        if not self._text.stopped:
            shown += self._text.flush()
        error = finish_error(reason)
        if error is None:
            out.append(self._frames.last(shown, _finish_name(reason, self._text), extra))
            if self._options.include_usage:
                out.append(self._frames.usage(self._prompt_tokens, self._text.num_tokens))
        else:
            if shown:
                out.append(self._frames.text(shown, extra))
            out.append(sse.error(error.envelope()))
        out.append(sse.DONE)

    def _extra(self, committed_ns: int) -> bytes:
        extra = b""
        if self._options.include_timing:
            extra += sse.timing_member(committed_ns)
        if self._options.continuous_usage_stats:
            extra += sse.usage_member(self._prompt_tokens, self._text.num_tokens)
        return extra

    def _write(self, frames: bytes) -> None:
        self._written_at = time.monotonic()
        self._writer.write(frames)


class KeepAlive:
    """Looks after the silent streams, all of them with one timer."""

    def __init__(self, period: float) -> None:
        """Look every `period` seconds, once started."""
        self._period = period
        self._replies: set[StreamedReply] = set()
        self._timer: asyncio.TimerHandle | None = None

    def add(self, reply: StreamedReply) -> None:
        """From now on this stream is looked after."""
        self._replies.add(reply)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._period, self._look)

    def discard(self, reply: StreamedReply) -> None:
        """This stream has ended."""
        self._replies.discard(reply)
        if not self._replies and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._period, self._look)
        now = time.monotonic()
        for reply in self._replies:
            reply.keep_alive(now)


def _finish_name(reason: int, text: TokenText) -> str:
    """OpenAI's word; a stop string that only the flush completed counts as one."""
    return "stop" if text.stopped or reason == FinishReason.STOP else "length"
