"""Streams that outlive their connection: a client that lost it gets exactly the rest, by the id of its last event.

Owns the ids of events, the window from which lost ones are written again, and who may ask for which stream for how
long (docs/architecture.md, "Resumption"). Knows no connection but the writer of the present response.
"""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from rbee.server.errors import Refusal, RefusalKind, invalid
from rbee.server.streams.replies import StreamedReply

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable

    from rbee.server.http.writer import Writer
    from rbee.server.streams.dialect import Dialect
    from rbee.server.streams.live import ReplyWatch
    from rbee.server.streams.pieces import Piece

_MAX_DIGITS = 18  # of an event's id


class NumberedEvents:
    """The events of one stream of one choice, each with an `id: N` line; the last ones can be rendered again.

    N is how many tokens the stream had consumed when the event was written, those without text included. An event
    without a further token counts on by one, so that no two have the same id. `window` is in tokens.
    """

    def __init__(self, dialect: Dialect, window: int) -> None:
        self._dialect = dialect
        self._size = window
        self._window: deque[tuple[int, Piece]] = deque()  # the id of a piece's last event
        self._num_forgotten = 0  # pieces
        self._end: list[tuple[int, bytes]] = []  # id and bytes of each event behind the pieces
        self._num_tokens = 0
        self.last_id = 0  # of the last event; 0 before the first
        self.forgotten_id = 0  # of the last event that cannot be rendered again; 0 if all can
        self.finished = False  # nothing comes after the last event

    def piece(self, piece: Piece, number: int) -> bytes:
        self._num_tokens = piece.num_tokens
        events = self._number(self._dialect.piece(0, piece, number))
        self._window.append((self.last_id, piece))
        while self._window[0][0] <= self.last_id - self._size:
            self.forgotten_id = self._window.popleft()[0]
            self._num_forgotten += 1
        return _joined(events)

    def end(self, piece: Piece, frame: bytes) -> bytes:
        """Number the last frame of the choice, which holds this piece."""
        self._num_tokens = piece.num_tokens
        return self.keep(frame)

    def keep(self, frame: bytes) -> bytes:
        """Number a frame behind the last piece."""
        events = self._number(frame)
        self._end += events
        return _joined(events)

    def since(self, last_id: int) -> bytes:
        """All events after the one with this id, which must not be older than the window."""
        assert last_id >= self.forgotten_id
        events: list[tuple[int, bytes]] = []
        for number, (piece_id, piece) in enumerate(self._window, self._num_forgotten):
            if piece_id > last_id:
                rendered = _split(self._dialect.piece(0, piece, number))
                events += zip(range(piece_id - len(rendered) + 1, piece_id + 1), rendered, strict=True)
        events += self._end
        beginning = self._dialect.begin() if last_id == 0 else b""
        return beginning + _joined([event for event in events if event[0] > last_id])

    def _number(self, frame: bytes) -> list[tuple[int, bytes]]:
        first_id = max(self._num_tokens, self.last_id + 1)
        events = list(enumerate(_split(frame), first_id))
        self.last_id = first_id + len(events) - 1
        return events


def _split(frame: bytes) -> list[bytes]:
    """The events of a frame, without the blank line at their end."""
    return frame.split(b"\n\n")[:-1]


def _joined(events: Iterable[tuple[int, bytes]]) -> bytes:
    return b"".join([b"id: %d\n%b\n\n" % event for event in events])


class Ticket(NamedTuple):
    """What lets a client resume the stream it asks for."""

    streams: ResumableStreams  # where the stream will be found
    owner: Hashable  # who may ask for it
    names: tuple[Hashable, ...]  # by which he may, the dialect's answer id among them
    window: int  # tokens whose frames can be rendered again


class ResumableReply(StreamedReply):
    """A streamed reply that is written to one connection after another, or to none for a while.

    The newest connection has it; an older one that is still open, perhaps half dead, is dropped. `window` is in tokens.
    """

    def __init__(self, writer: Writer, dialect: Dialect, streams: ResumableStreams, window: int) -> None:
        self.events = NumberedEvents(dialect, window)
        self._streams = streams
        self._connected = True
        super().__init__(writer, dialect)

    @property
    def answer_id(self) -> str:
        return self._dialect.answer_id

    @property
    def stream_headers(self) -> list[tuple[bytes, bytes]]:
        return [*self._dialect.stream_headers, (b"x-stream-id", self._dialect.answer_id.encode())]

    @property
    def finished(self) -> bool:
        """Whether all of it has been rendered, for whichever connection."""
        return self.events.finished

    def check_replay(self, last_id: int) -> None:
        """Raise Refusal if there was no such event yet, or if those after it have left the window."""
        events = self.events
        if last_id > events.last_id:
            raise Refusal(
                RefusalKind.INVALID,
                f"Last-Event-ID is {last_id}, but the last event of this stream so far is {events.last_id}.",
                code="invalid_last_event_id",
            )
        if last_id < events.forgotten_id:
            raise Refusal(
                RefusalKind.GONE,
                f"The events after {last_id} are not remembered any more, only those after {events.forgotten_id} "
                "(--replay-window); send the request anew.",
                code="replay_window_passed",
            )

    def has_more(self, last_id: int) -> bool:
        return last_id < self.events.last_id or not self.finished

    def attach(self, writer: Writer, last_id: int) -> None:
        """Go on to `writer`, after the event with this id, which `check_replay` has let pass."""
        if self._connected:
            self._writer.close()  # it gets no events of its own end
            self._writer.abort()
            self._end()
        self._streams.hold(self)
        self.sequences.adopt()
        self._connect(writer)
        self._connected = True
        replay = self.events.since(last_id)
        if replay:
            self._write(replay)
        if self.finished:
            self._end()

    def leave(self, writer: Writer) -> bool:
        """See `LiveReply.leave`. The stream stays for the resume timeout."""
        if not self.is_written_to(writer):
            return False
        if self._connected:
            self._connected = False
            self.sequences.orphan()
            self._end()
        return True

    def _piece(self, choice: int, piece: Piece) -> bytes:
        number = self._num_frames[choice]
        self._num_frames[choice] = number + 1
        self._last_shown = piece
        return self.events.piece(piece, number)

    def _last(self, choice: int, piece: Piece, reason: int) -> bytes:
        return self.events.end(piece, super()._last(choice, piece, reason))

    def _finish(self) -> bytes:
        self.events.finished = True
        return self.events.keep(super()._finish())

    def _error_frames(self, refusal: Refusal) -> bytes:
        self.events.finished = True
        return self.events.keep(super()._error_frames(refusal))

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
    ring then. Of those that have ended the last `max_ended` are kept.

    Args:
        watch: checks this object while a stream is without a connection.
        resume_timeout: in seconds.
        max_ended: how many streams that have ended are kept.
    """

    def __init__(self, watch: ReplyWatch, *, resume_timeout: float, max_ended: int) -> None:
        self._watch = watch
        self._resume_timeout = resume_timeout
        self._max_ended = max_ended
        self._streams: dict[Hashable, ResumableReply] = {}
        self._keys: dict[ResumableReply, list[Hashable]] = {}
        # Without a connection, and since when, longest first.
        self._open: dict[ResumableReply, float] = {}
        self._ended: dict[ResumableReply, float] = {}

    def add(self, reply: ResumableReply, owner: Hashable, *names: Hashable) -> None:
        """Let `owner` find this stream under these names; an earlier stream of a name loses it."""
        self._keys[reply] = [(owner, name) for name in names]
        self._streams.update(dict.fromkeys(self._keys[reply], reply))

    def find(self, owner: Hashable, name: Hashable, shown: str | None = None) -> ResumableReply:
        """The owner's stream of this name, which a refusal calls `shown` if that differs.

        Raises:
            Refusal: there is none. Another owner's stream gives the same refusal as none at all.
        """
        reply = self._streams.get((owner, name))
        if reply is None:
            raise Refusal(
                RefusalKind.GONE,
                f"There is no stream {shown or name!r} to resume: it is unknown here, or was without a connection for "
                f"more than {self._resume_timeout:g} s (--resume-timeout); send the request anew.",
                code="stream_gone",
            )
        return reply

    def hold(self, reply: ResumableReply) -> None:
        """The stream has a connection again."""
        self._open.pop(reply, None)
        self._ended.pop(reply, None)
        if not self._open and not self._ended:
            self._watch.discard(self)

    def release(self, reply: ResumableReply) -> None:
        """The stream has no connection, or has ended without one: its time begins to run."""
        if reply not in self._keys:
            return
        self._open.pop(reply, None)
        (self._ended if reply.finished else self._open)[reply] = time.monotonic()
        self._watch.add(self)
        if len(self._ended) > self._max_ended:
            self._forget(next(iter(self._ended)))

    def check(self, now: float, slow_reader_timeout: float) -> None:  # noqa: ARG002 - as the watch calls it
        """Forget the streams whose time has run out."""
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
        reply.sequences.cancel()


def read_last_event_id(given: str) -> int:
    """The number in a Last-Event-ID header, or a Refusal."""
    if not (given.isascii() and given.isdigit() and len(given) <= _MAX_DIGITS):
        raise invalid(
            None,
            f"Last-Event-ID must be the id of an event of the stream, a number, not {given[:64]!r}.",
            code="invalid_last_event_id",
        )
    return int(given)
