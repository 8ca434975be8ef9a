"""OpenAI's Responses: the response object, and the typed events of its stream.

Owns their JSON and the numbers of events. What is constant in a stream is rendered once. Knows neither where the text
comes from nor where the bytes go.
"""

from __future__ import annotations

import time
import uuid
from typing import TYPE_CHECKING, Any

import msgspec

from rbee.messages import FinishReason
from rbee.server.http import sse
from rbee.server.protocols.ignored_fields import warning_header
from rbee.transport import FrameTemplate, LastFrames, Slot

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rbee.server.errors import Refusal
    from rbee.server.protocols.responses.schemas import ResponsesRequest
    from rbee.server.streams.dialect import CollectedChoice, Piece
    from rbee.server.streams.generation import Generation
    from rbee.server.streams.outcome import Outcome

_encode = msgspec.json.Encoder().encode

_NUM_BEGINNING = 4  # events before the first text
_NO_FRAMES = b""
_INCOMPLETE = {
    FinishReason.LENGTH: "max_output_tokens",
    FinishReason.DEADLINE: "deadline",  # ours; the other is OpenAI's word
}


class ResponsesDialect:
    """One answer to POST /v1/responses: see `rbee.server.streams.dialect.Dialect`.

    Its generation has `keep_text`: the last events repeat all of the text.

    Args:
        model: its name.
        generation: what is asked for.
        request: the response repeats what it says.
        ignored: names of fields that are not followed.
        clock: UNIX time in seconds.
    """

    keep_alive = sse.KEEP_ALIVE

    def __init__(
        self,
        model: str,
        generation: Generation,
        request: ResponsesRequest,
        *,
        ignored: Sequence[str] = (),
        clock: Callable[[], float] = time.time,
    ) -> None:
        unique = uuid.uuid4().hex
        self.answer_id = f"resp_{unique}"
        self._item_id = f"msg_{unique}"
        headers = warning_header(ignored)
        self.stream_headers: Sequence[tuple[bytes, bytes]] = [*sse.HEADERS, *headers]
        self.answer_headers: Sequence[tuple[bytes, bytes]] = [(b"content-type", b"application/json"), *headers]
        self._model = model
        self._request = request
        self._sampling = generation.sampling
        self._prompt_tokens = len(generation.prompt)
        self._clock = clock
        self._created_at = int(clock())
        self._before, self._after = self._delta()

    def begin(self) -> bytes:
        """All that comes before the first text; a queued request has it at once."""
        response = self._response("in_progress")
        item = self._item("in_progress", [])
        part = {"item_id": self._item_id, "output_index": 0, "content_index": 0, "part": _part("")}
        return (
            _event("response.created", 0, {"response": response})
            + _event("response.in_progress", 1, {"response": response})
            + _event("response.output_item.added", 2, {"output_index": 0, "item": item})
            + _event("response.content_part.added", 3, part)
        )

    def piece(self, choice: int, piece: Piece, number: int) -> bytes:  # noqa: ARG002 - there is one choice
        return self._before[0] + b"%d" % (_NUM_BEGINNING + number) + self._before[1] + _encode(piece.text) + self._after

    def end(self, choice: int, piece: Piece, number: int, reason: int) -> bytes:  # noqa: ARG002 - see finish
        return self.piece(choice, piece, number) if piece.text else _NO_FRAMES

    def finish(self, outcome: Outcome) -> bytes:
        number = _NUM_BEGINNING + outcome.num_frames
        response = self._ended(outcome.text, outcome.reason, outcome)
        [item] = response["output"]
        [part] = item["content"]
        place = {"item_id": self._item_id, "output_index": 0, "content_index": 0}
        text = place | {"text": outcome.text, "logprobs": []}
        return (
            _event("response.output_text.done", number, text)
            + _event("response.content_part.done", number + 1, place | {"part": part})
            + _event("response.output_item.done", number + 2, {"output_index": 0, "item": item})
            + _event(f"response.{response['status']}", number + 3, {"response": response})
        )

    def error(self, refusal: Refusal, number: int) -> bytes:
        error = {"code": "server_error", "message": refusal.message}  # OpenAI's word for all that is not the client's
        return _event(
            "response.failed", _NUM_BEGINNING + number, {"response": self._response("failed") | {"error": error}}
        )

    def answer(self, choices: Sequence[CollectedChoice], outcome: Outcome) -> bytes:
        [choice] = choices
        return _encode(self._ended(choice.text, choice.reason, outcome))

    def template(self) -> FrameTemplate:
        """Deltas only: the events behind them repeat the text, in `finish`."""
        delta = self._before[0] + Slot.INDEX + self._before[1] + Slot.TEXT + self._after
        last = LastFrames(delta, delta, _NO_FRAMES, _NO_FRAMES)
        return FrameTemplate(delta, delta, last, last, last, end=b"", first_index=_NUM_BEGINNING)

    def _delta(self) -> tuple[tuple[bytes, bytes], bytes]:
        """What stands before the number of a delta and before its text, and behind that."""
        kind = b"response.output_text.delta"
        to_number = b'event: %b\ndata: {"type":"%b","sequence_number":' % (kind, kind)
        place = b',"item_id":%b,"output_index":0,"content_index":0,"delta":' % _encode(self._item_id)
        return (to_number, place), b',"logprobs":[]}\n\n'

    def _ended(self, text: str, reason: int, outcome: Outcome) -> dict[str, Any]:
        """The response object of an ordinary end."""
        why = _INCOMPLETE.get(FinishReason(reason))
        status = "completed" if why is None else "incomplete"
        ended: dict[str, Any] = {
            "output": [self._item(status, [_part(text)])],
            "usage": {
                "input_tokens": self._prompt_tokens,
                "input_tokens_details": {"cached_tokens": outcome.cached_tokens or 0, "cache_write_tokens": 0},
                "output_tokens": outcome.completion_tokens,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": self._prompt_tokens + outcome.completion_tokens,
            },
        }
        if why is None:
            ended["completed_at"] = int(self._clock())
        else:
            ended["incomplete_details"] = {"reason": why}
        return self._response(status) | ended

    def _response(self, status: str) -> dict[str, Any]:
        """The response object without an answer."""
        request, sampling = self._request, self._sampling
        return {
            "id": self.answer_id,
            "object": "response",
            "created_at": self._created_at,
            "status": status,
            "background": False,
            "completed_at": None,
            "error": None,
            "incomplete_details": None,
            "instructions": request.instructions,
            "max_output_tokens": request.max_output_tokens,
            "max_tool_calls": None,
            "metadata": request.metadata or {},
            "model": self._model,
            "output": [],
            "parallel_tool_calls": True,
            "previous_response_id": None,
            "prompt_cache_key": None,
            "reasoning": {"effort": None, "summary": None},
            "safety_identifier": None,
            "service_tier": "default",
            "store": False,
            "temperature": sampling.temperature,
            "text": {"format": (request.text or {}).get("format") or {"type": "text"}},
            "tool_choice": "auto",
            "tools": [],
            "top_logprobs": 0,
            "top_p": sampling.top_p,
            "truncation": "disabled",
            "usage": None,
            "user": request.user,
        }

    def _item(self, status: str, content: list[dict[str, Any]]) -> dict[str, Any]:
        return {"id": self._item_id, "type": "message", "status": status, "role": "assistant", "content": content}


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _event(kind: str, number: int, members: dict[str, Any]) -> bytes:
    data = _encode({"type": kind, "sequence_number": number} | members)
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), data)
