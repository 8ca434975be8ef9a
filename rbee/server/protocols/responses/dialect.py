"""OpenAI's Responses: the response object, and the typed events of its stream.

Owns the JSON of the response; `rbee.server.protocols.responses.items` has that of its output. What is constant in a
stream is rendered once. Knows neither where the text comes from nor where the bytes go.
"""

from __future__ import annotations

import time
import uuid
from typing import TYPE_CHECKING, Any

import msgspec

from rbee.messages import FinishReason
from rbee.server.http import sse
from rbee.server.protocols.ignored_fields import warning_header
from rbee.server.protocols.responses.items import NUM_CREATED, NUM_OPENING, Items, event, number_of
from rbee.server.text.output import OutputKind
from rbee.transport import FrameTemplate, LastFrames, Slot

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rbee.server.errors import Refusal
    from rbee.server.protocols.responses.schemas import ResponsesRequest
    from rbee.server.protocols.token_logprobs import TokenBytes
    from rbee.server.streams.generation import Generation
    from rbee.server.streams.outcome import Outcome
    from rbee.server.streams.pieces import CollectedChoice, Part, Piece

_encode = msgspec.json.Encoder().encode

_NUM_BEGINNING = NUM_CREATED + NUM_OPENING  # events before the first text of an output that is nothing else
_NO_FRAMES = b""
_INCOMPLETE = {
    FinishReason.LENGTH: "max_output_tokens",
    FinishReason.DEADLINE: "deadline",  # ours; the other is OpenAI's word
}


class ResponsesDialect:
    """One answer to POST /v1/responses: see `rbee.server.streams.dialect.Dialect`.

    Its generation has `keep_text`: the last events of an item repeat all of its text.

    Args:
        model: its name.
        generation: what is asked for.
        request: the response repeats what it says.
        token_bytes: a token as it is on its own, for logprobs.
        ignored: names of fields that are not followed.
        clock: UNIX time in seconds.
    """

    keep_alive = sse.KEEP_ALIVE

    def __init__(
        self,
        model: str,
        generation: Generation,
        request: ResponsesRequest,
        token_bytes: TokenBytes,
        *,
        ignored: Sequence[str] = (),
        clock: Callable[[], float] = time.time,
    ) -> None:
        unique = uuid.uuid4().hex
        self.answer_id = f"resp_{unique}"
        self._items = Items(self.answer_id, token_bytes if generation.has_logprobs else None)
        headers = warning_header(ignored)
        self.stream_headers: Sequence[tuple[bytes, bytes]] = [*sse.HEADERS, *headers]
        self.answer_headers: Sequence[tuple[bytes, bytes]] = [(b"content-type", b"application/json"), *headers]
        self._model = model
        self._request = request
        self._sampling = generation.sampling
        self._prompt_tokens = len(generation.prompt)
        self._is_parsed = generation.output is not None
        self._has_logprobs = generation.has_logprobs
        self._clock = clock
        self._created_at = int(clock())
        self._text = self._items.delta(OutputKind.TEXT, 0)

    def begin(self) -> bytes:
        """All that comes before the first text; a queued request has it at once.

        What the first item is, is not known yet if the output is parsed: it begins with its first piece.
        """
        response = self._response("in_progress")
        return (
            event("response.created", 0, {"response": response})
            + event("response.in_progress", 1, {"response": response})
            + (b"" if self._is_parsed else self._items.open(OutputKind.TEXT, 0, NUM_CREATED))
        )

    def piece(self, choice: int, piece: Piece, number: int) -> bytes:  # noqa: ARG002 - there is one choice
        if self._is_parsed:
            return self._items.piece(piece, number)
        to_number, to_text, after = self._text
        if self._has_logprobs:
            after = self._items.listing(piece, after)
        return to_number + b"%d" % (_NUM_BEGINNING + number) + to_text + _encode(piece.text) + after

    def end(self, choice: int, piece: Piece, number: int, reason: int) -> bytes:  # noqa: ARG002 - see finish
        if piece.text:
            return self.piece(choice, piece, number)
        self._items.keep(piece)
        return _NO_FRAMES

    def finish(self, outcome: Outcome) -> bytes:
        parts = outcome.parts
        response = self._ended(parts, outcome.reason, outcome)
        status = response["status"]
        never_begun = self._is_parsed and not outcome.num_frames
        opening = self._items.open(OutputKind.TEXT, 0, NUM_CREATED) if never_begun else _NO_FRAMES
        closing, number = self._items.finish(parts, outcome.num_frames, status)
        return opening + closing + event(f"response.{status}", number, {"response": response})

    def error(self, refusal: Refusal, number: int, last: Piece | None = None) -> bytes:
        error = {"code": "server_error", "message": refusal.message}  # OpenAI's word for all that is not the client's
        if last is not None:
            next_number = number_of(last, number - 1) + 1
        else:
            next_number = NUM_CREATED if self._is_parsed else _NUM_BEGINNING + number
        return event("response.failed", next_number, {"response": self._response("failed") | {"error": error}})

    def answer(self, choices: Sequence[CollectedChoice], outcome: Outcome) -> bytes:
        [choice] = choices
        for piece in choice.pieces if self._has_logprobs else ():
            self._items.keep(piece)
        return _encode(self._ended(choice.parts, choice.reason, outcome))

    def template(self) -> FrameTemplate:
        """Deltas only: the events behind them repeat the text, in `finish`. A list of logprobs is not plain."""
        to_number, to_text, after = self._text
        delta = to_number + Slot.INDEX + to_text + Slot.TEXT + after
        last = LastFrames(delta, delta, _NO_FRAMES, _NO_FRAMES)
        return FrameTemplate(delta, delta, last, last, last, end=b"", first_index=_NUM_BEGINNING)

    def _ended(self, parts: Sequence[Part], reason: int, outcome: Outcome) -> dict[str, Any]:
        """The response object of an ordinary end."""
        why = _INCOMPLETE.get(FinishReason(reason))
        status = "completed" if why is None else "incomplete"
        ended: dict[str, Any] = {
            "output": self._items.whole(parts, status),
            "usage": {
                "input_tokens": self._prompt_tokens,
                "input_tokens_details": {"cached_tokens": outcome.cached_tokens or 0, "cache_write_tokens": 0},
                "output_tokens": outcome.completion_tokens,
                "output_tokens_details": {"reasoning_tokens": outcome.reasoning_tokens or 0},
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
            "parallel_tool_calls": request.parallel_tool_calls,
            "previous_response_id": None,
            "prompt_cache_key": None,
            "reasoning": {"effort": None, "summary": None} | (request.reasoning or {}),
            "safety_identifier": None,
            "service_tier": "default",
            "store": False,
            "temperature": sampling.temperature,
            "text": {"format": (request.text or {}).get("format") or {"type": "text"}},
            "tool_choice": request.tool_choice or "auto",
            "tools": request.tools,
            "top_logprobs": request.top_logprobs,
            "top_p": sampling.top_p,
            "truncation": "disabled",
            "usage": None,
            "user": request.user,
        }
