"""The events of a job's stream: started, the tokens, what they cost, and one end.

Owns their JSON. Clients of this protocol take every line that is not blank for data: there are no comments, no names
and no ids of events. Does not know when an event is written.
"""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec

from rbee.messages import FinishReason
from rbee.server.http import sse
from rbee.server.protocols.jobs import refusals
from rbee.transport import FrameTemplate, LastFrames, Slot

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rbee.server.errors import Refusal
    from rbee.server.streams.outcome import Outcome
    from rbee.server.streams.pieces import CollectedChoice, Piece

_encode = msgspec.json.Encoder().encode
_TOKEN = b'data: {"type":"token","t":%b,"i":%b}\n\n'


class JobDialect:
    """One job; see `rbee.server.streams.dialect.Dialect`. Its id is made here, and no other client can guess it.

    `engine_memory` is asked at the end: bytes that the engine process holds; None if that is not known.
    """

    stream_headers: Sequence[tuple[bytes, bytes]] = sse.HEADERS
    answer_headers: Sequence[tuple[bytes, bytes]] = ()  # a job has no answer but its stream
    keep_alive = b"\n"  # no event: events have no ids, and a blank line alone ends none

    def __init__(self, model: str, engine_memory: Callable[[], int | None] = lambda: None) -> None:
        self._engine_memory = engine_memory
        self.answer_id = f"job-{uuid.uuid4()}"
        started = {"type": "started", "job_id": self.answer_id, "model": model, "started_at": timestamp()}
        self._started = frame(started)

    def begin(self) -> bytes:
        return self._started

    def piece(self, choice: int, piece: Piece, number: int) -> bytes:  # noqa: ARG002 - there is one choice
        return _TOKEN % (_encode(piece.text), b"%d" % number)

    def end(self, choice: int, piece: Piece, number: int, reason: int) -> bytes:  # noqa: ARG002 - `finish` has the reason
        return self.piece(choice, piece, number) if piece.text else b""

    def finish(self, outcome: Outcome) -> bytes:
        if outcome.reason == FinishReason.DEADLINE:
            return self.error(refusals.incomplete())
        timings = outcome.timings or {}
        end: dict[str, Any] = {
            "type": "end",
            "tokens_out": outcome.completion_tokens,
            "decode_time_ms": round(timings.get("predicted_ms", 0)),
            "stop_reason": "MAX_TOKENS" if outcome.reason == FinishReason.LENGTH else "EOS",
        }
        if outcome.stop_string is not None:
            end |= {"stop_reason": "STOP_SEQUENCE", "stop_sequence_matched": outcome.stop_string}
        return self._metrics(timings) + frame(end) + sse.DONE

    def _metrics(self, timings: dict[str, float]) -> bytes:
        """Nothing, if one of the two is not known: a single token has no rate."""
        rate, memory = timings.get("predicted_per_second"), self._engine_memory()
        if rate is None or memory is None:
            return b""
        return frame({"type": "metrics", "tokens_per_sec": rate, "memory_bytes": memory})

    def error(self, refusal: Refusal, number: int = 0, last: Piece | None = None) -> bytes:  # noqa: ARG002 - no numbers
        return frame(refusals.event(refusal)) + sse.DONE

    def answer(self, choices: Sequence[CollectedChoice], outcome: Outcome) -> bytes:
        raise NotImplementedError("a job is read as a stream")

    def template(self) -> FrameTemplate:
        """Of the tokens; `finish` is called for the end."""
        token = _TOKEN % (Slot.TEXT, Slot.INDEX)
        last = LastFrames(first_last=token, next_last=token, last=b"", empty=b"")
        return FrameTemplate(first=token, next=token, stop=last, length=last, deadline=last, end=b"")


def frame(event: dict[str, Any]) -> bytes:
    """An event on the wire."""
    return b"data: %b\n\n" % _encode(event)


def timestamp() -> str:
    """Now, in ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
