"""Streams that outlive their connection: a client that lost it gets exactly the rest, by the id of its last event.

Owns the ids of events, the window from which lost ones are written again, and who may ask for which stream for how
long. Only clients that say that they know events have such streams: others would take an id for a part of the data.

While nobody is connected, a stream is a slow reader's: its tokens wait in its ring, then its sequence pauses. What it
holds here besides is the replay window: --replay-window tokens of some 200 bytes, 200 KiB by default; with logprobs of
some 100 bytes more for each token that is listed. It is written in one go to who comes back, as a full ring is: no more
than that is in the write buffer at once. An answer of several choices cannot be resumed.
"""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from rbee.server.errors import ApiError
from rbee.server.streams.replies import StreamedReply

if TYPE_CHECKING:
    from collections.abc import Hashable

    from rbee.server.http.protocol import StreamWriter
    from rbee.server.protocols.openai.frames import Frames
    from rbee.server.protocols.openai.logprobs import Format
    from rbee.server.protocols.openai.schemas import StreamOptions
    from rbee.server.streams.choices import Piece
    from rbee.server.streams.replies import StreamWatch


class NumberedFrames:
    """The frames of one stream, each with an `id: N` line; the last ones can be had again, byte for byte.

    N is how many tokens the stream had consumed when the frame was written, those included that show no text. A frame
    of the end that comes without a token counts on by one, so that no two frames have the same id.

    Attributes:
        num_tokens: that the stream has consumed with the frame that is written next.
        last_id: of the last frame; 0 before the first.
        forgotten_id: of the last frame that cannot be had again; 0 if all can.
        finished: [DONE] has been written.
    """

    def __init__(self, frames: Frames, window: int) -> None:
        """Number `frames`, and remember those of the last `window` tokens."""
        self._frames = frames
        self._size = window
        self._window: deque[tuple[int, str, bytes, bytes]] = deque()  # id, text, extra, logprobs
        self._end: list[tuple[int, bytes]] = []  # id, whole frame: at most three
        self._first_id = 0
        self.num_tokens = 0
        self.last_id = 0
        self.forgotten_id = 0
        self.finished = False

    def text(self, text: str, extra: bytes = b"", logprobs: bytes = b"") -> bytes:
        """See `Frames.text`."""
        frame_id = self._next_id()
        self._first_id = self._first_id or frame_id
        self._window.append((frame_id, text, extra, logprobs))
        while self._window[0][0] <= frame_id - self._size:
            self.forgotten_id = self._window.popleft()[0]
        return _numbered(frame_id, self._frames.text(text, extra, logprobs))

    def last(self, text: str, finish_reason: str, extra: bytes = b"", logprobs: bytes = b"") -> bytes:
        """See `Frames.last`."""
        return self._keep(self._frames.last(text, finish_reason, extra, logprobs))

    def usage(self, prompt_tokens: int, completion_tokens: int, cached_tokens: int | None) -> bytes:
        """See `Frames.usage`."""
        return self._keep(self._frames.usage(prompt_tokens, completion_tokens, cached_tokens))

    def error(self, envelope: bytes) -> bytes:
        """See `Frames.error`."""
        return self._keep(self._frames.error(envelope))

    def done(self) -> bytes:
        """See `Frames.done`."""
        self.finished = True
        return self._keep(self._frames.done())

    def since(self, last_id: int) -> bytes:
        """All frames after the one with this id, which must not be older than the window."""
        assert last_id >= self.forgotten_id
        if last_id < self._first_id:
            self._frames.rewind()
        texts = [_numbered(shown[0], self._frames.text(*shown[1:])) for shown in self._window if shown[0] > last_id]
        return b"".join([*texts, *(frame for n, frame in self._end if n > last_id)])

    def _next_id(self) -> int:
        self.last_id = max(self.num_tokens, self.last_id + 1)
        return self.last_id

    def _keep(self, frame: bytes) -> bytes:
        frame_id = self._next_id()
        self._end.append((frame_id, _numbered(frame_id, frame)))
        return self._end[-1][1]


class Ticket(NamedTuple):
    """What lets a client resume the stream it asks for.

    Attributes:
        streams: where the stream will be found.
        owner: who may ask for it.
        request_id: a name for it besides the chunks' id.
        window: tokens whose frames can be had again.
    """

    streams: ResumableStreams
    owner: Hashable
    request_id: str
    window: int


class ResumableReply(StreamedReply):
    """A streamed reply that is written to one connection after another, or to none for a while.

    The newest connection has it: an older one that still holds on, perhaps half dead, is dropped.
    """

    def __init__(
        self,
        writer: StreamWriter,
        frames: NumberedFrames,
        options: StreamOptions,
        prompt_tokens: int,
        logprobs: Format | None = None,
        *,
        streams: ResumableStreams,
    ) -> None:
        super().__init__(writer, [frames], options, prompt_tokens, logprobs)
        self._numbered = frames
        self._streams = streams
        self._connected = True

    @property
    def finished(self) -> bool:
        """Whether all of it has been written, to whomever."""
        return self._numbered.finished

    def has_more(self, last_id: int) -> bool:
        """Whether anything comes after the event with this id.

        Raises:
            ApiError: there was no such event yet, or those after it are not remembered any more.
        """
        if last_id > self._numbered.last_id:
            raise ApiError(
                400,
                f"Last-Event-ID is {last_id}, but the last event of this stream so far is {self._numbered.last_id}.",
                code="invalid_last_event_id",
            )
        if last_id < self._numbered.forgotten_id:
            raise ApiError(
                410,
                f"The events after {last_id} are not remembered any more, only those after "
                f"{self._numbered.forgotten_id} (--replay-window); send the request anew.",
                code="replay_window_passed",
            )
        return last_id < self._numbered.last_id or not self.finished

    def attach(self, writer: StreamWriter, last_id: int) -> None:
        """Go on to `writer`, after the event with this id; `has_more` has been asked."""
        if self._connected:
            self._writer.close()  # it hears nothing of its own end
            self._writer.abort()
            self._end()
        self._streams.hold(self)
        self._connect(writer)
        self._connected = True
        replay = self._numbered.since(last_id)
        if replay:
            self._write(replay)
        if self.finished:
            self._end()

    def leave(self, writer: StreamWriter) -> bool:
        """See `LiveReply.leave`. The stream stays for a while, for whoever comes back."""
        if not self.is_written_to(writer):
            return False
        if self._connected:
            self._connected = False
            self.stream.pause()
            self._end()
        return True

    def _frame(self, frames: Frames | NumberedFrames, piece: Piece, finish_reason: str = "") -> bytes:
        self._numbered.num_tokens = piece.num_tokens
        return super()._frame(frames, piece, finish_reason)

    def _write(self, frames: bytes) -> None:
        if self._connected:
            super()._write(frames)

    def _end(self) -> None:
        super()._end()
        if not self._connected:
            self._streams.release(self)


class ResumableStreams:
    """The streams that may be resumed, and by whom.

    One without a connection is kept for the resume timeout, whether it has ended or not; one that has ended holds no
    ring then. Of those that have ended there are at most `max_ended`, the last ones.
    """

    def __init__(self, watch: StreamWatch, *, resume_timeout: float, max_ended: int) -> None:
        """Start with none.

        Args:
            watch: looks at this object while a stream is without a connection.
            resume_timeout: seconds that such a stream is kept.
            max_ended: how many that have ended are kept.
        """
        self._watch = watch
        self._resume_timeout = resume_timeout
        self._max_ended = max_ended
        self._streams: dict[Hashable, ResumableReply] = {}
        self._keys: dict[ResumableReply, list[Hashable]] = {}
        # Without a connection, and since when, longest first.
        self._open: dict[ResumableReply, float] = {}
        self._ended: dict[ResumableReply, float] = {}

    def add(self, reply: ResumableReply, owner: Hashable, *names: str) -> None:
        """From now on `owner` finds this stream under these names. A name that stood for another one stands for it."""
        self._keys[reply] = [(owner, name) for name in names]
        self._streams.update(dict.fromkeys(self._keys[reply], reply))

    def find(self, owner: Hashable, name: str) -> ResumableReply:
        """The owner's stream of this name.

        Raises:
            ApiError: there is none. It says no more, so that nobody learns of the streams of others.
        """
        reply = self._streams.get((owner, name))
        if reply is None:
            raise ApiError(
                410,
                f"There is no stream {name!r} to resume: it is unknown here, or was without a connection for more than "
                f"{self._resume_timeout:g} s (--resume-timeout); send the request anew.",
                code="stream_gone",
            )
        return reply

    def hold(self, reply: ResumableReply) -> None:
        """The stream has a connection."""
        self._open.pop(reply, None)
        self._ended.pop(reply, None)
        if not self._open and not self._ended:
            self._watch.discard(self)

    def release(self, reply: ResumableReply) -> None:
        """The stream has no connection, or has ended without one: from now on its time runs out."""
        if reply not in self._keys:
            return
        self._open.pop(reply, None)
        (self._ended if reply.finished else self._open)[reply] = time.monotonic()
        self._watch.add(self)
        if len(self._ended) > self._max_ended:
            self._forget(next(iter(self._ended)))

    def look(self, now: float, slow_reader_timeout: float) -> None:  # noqa: ARG002 - as the watch calls it
        """Forget the streams that nobody has come back for. `now` is time.monotonic()."""
        for waiting in (self._open, self._ended):
            while waiting:
                reply, since = next(iter(waiting.items()))
                if now - since < self._resume_timeout:
                    break
                self._forget(reply)

    def _forget(self, reply: ResumableReply) -> None:
        for key in self._keys.pop(reply):
            if self._streams.get(key) is reply:
                del self._streams[key]
        self.hold(reply)
        reply.stream.cancel()


def _numbered(frame_id: int, frame: bytes) -> bytes:
    return b"id: %d\n%b" % (frame_id, frame)
