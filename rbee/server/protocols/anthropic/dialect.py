"""Anthropic's answers: a Message, and the events of its stream.

Owns the JSON of their frame; `rbee.server.protocols.anthropic.blocks` has that of what they say. What is constant in a
stream is rendered once. Knows neither where the text comes from nor where the bytes go.
"""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

import msgspec

from rbee.messages import FinishReason
from rbee.server.http import sse
from rbee.server.protocols.anthropic import blocks
from rbee.server.protocols.anthropic.blocks import event
from rbee.server.protocols.anthropic.errors import REQUEST_ID, envelope
from rbee.server.protocols.ignored_fields import warning_header
from rbee.server.text.output import OutputKind
from rbee.transport import FrameTemplate, LastFrames, Slot

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rbee.server.errors import Refusal
    from rbee.server.streams.generation import Generation
    from rbee.server.streams.outcome import Outcome
    from rbee.server.streams.pieces import CollectedChoice, Part, Piece

_encode = msgspec.json.Encoder().encode

_TEXT = blocks.delta_of(OutputKind.TEXT, 0)
_PING = b'event: ping\ndata: {"type":"ping"}\n\n'
_NO_FRAMES = b""


class MessagesDialect:
    """One answer to POST /v1/messages: see `rbee.server.streams.dialect.Dialect`.

    Args:
        model: its name.
        generation: what is asked for.
        request_id: of the request; errors carry it.
        ignored: names of fields that are not followed.
        fills_context: the answer may be as long as the model's length allows, and no longer.
    """

    keep_alive = _PING

    def __init__(
        self,
        model: str,
        generation: Generation,
        *,
        request_id: str,
        ignored: Sequence[str] = (),
        fills_context: bool = False,
    ) -> None:
        self.answer_id = "msg_" + uuid.uuid4().hex
        headers = [(REQUEST_ID.encode(), request_id.encode()), *warning_header(ignored)]
        self.stream_headers: Sequence[tuple[bytes, bytes]] = [*sse.HEADERS, *headers]
        self.answer_headers: Sequence[tuple[bytes, bytes]] = [(b"content-type", b"application/json"), *headers]
        self._model = model
        self._request_id = request_id
        self._prompt_tokens = len(generation.prompt)
        self._is_parsed = generation.output is not None
        self._at_the_limit = "model_context_window_exceeded" if fills_context else "max_tokens"

    def begin(self) -> bytes:
        """All that comes before the first text; a queued request has it at once.

        How many tokens are cached is not known yet: `finish` counts the input again. If the output is parsed, the kind
        of the first block is not known either: it begins with its first piece.
        """
        message = self._message([], None, None, self._usage(None, 0, None))
        block = b"" if self._is_parsed else blocks.start(self.answer_id, OutputKind.TEXT, 0)
        return event("message_start", {"message": message}) + block + _PING

    def piece(self, choice: int, piece: Piece, number: int) -> bytes:  # noqa: ARG002 - there is one choice
        if not self._is_parsed:
            return _TEXT % _encode(piece.text)
        return blocks.events(self.answer_id, piece, begins=number == 0 or piece.ended is not None)

    def end(self, choice: int, piece: Piece, number: int, reason: int) -> bytes:  # noqa: ARG002 - see finish
        return self.piece(choice, piece, number) if piece.text else _NO_FRAMES

    def finish(self, outcome: Outcome) -> bytes:
        parts = outcome.parts
        stop_reason, stop_sequence = self._stop(outcome.reason, outcome.stop_string, parts)
        usage = self._usage(outcome.cached_tokens, outcome.completion_tokens, outcome.reasoning_tokens)
        delta = {"stop_reason": stop_reason, "stop_sequence": stop_sequence}
        never_begun = self._is_parsed and not outcome.num_frames
        return (
            (blocks.start(self.answer_id, OutputKind.TEXT, 0) if never_begun else b"")
            + blocks.stop(parts[-1].kind, len(parts) - 1)
            + event("message_delta", {"delta": delta, "usage": usage})
            + event("message_stop", {})
        )

    def error(self, refusal: Refusal, number: int, last: Piece | None = None) -> bytes:  # noqa: ARG002 - no numbers
        return b"event: error\ndata: %b\n\n" % envelope(refusal, self._request_id)

    def answer(self, choices: Sequence[CollectedChoice], outcome: Outcome) -> bytes:
        [choice] = choices
        usage = self._usage(outcome.cached_tokens, outcome.completion_tokens, outcome.reasoning_tokens)
        stop = self._stop(choice.reason, outcome.stop_string, choice.parts)
        return _encode(self._message(blocks.content(self.answer_id, choice.parts), *stop, usage))

    def template(self) -> FrameTemplate:
        """Deltas only: why a stream ends, and what of its prompt was cached, is in `finish`."""
        delta = _TEXT % Slot.TEXT
        last = LastFrames(delta, delta, _NO_FRAMES, _NO_FRAMES)
        return FrameTemplate(delta, delta, last, last, last, end=b"")

    def _message(
        self, content: list[dict[str, Any]], stop_reason: str | None, stop_sequence: str | None, usage: dict[str, Any]
    ) -> dict[str, Any]:
        return {
            "id": self.answer_id,
            "type": "message",
            "role": "assistant",
            "model": self._model,
            "content": content,
            "stop_reason": stop_reason,
            "stop_sequence": stop_sequence,
            "usage": usage,
        }

    def _usage(self, cached_tokens: int | None, output_tokens: int, reasoning_tokens: int | None) -> dict[str, Any]:
        """As Anthropic counts: input tokens are those that were not read from the cache."""
        cached = cached_tokens or 0
        usage: dict[str, Any] = {
            "input_tokens": self._prompt_tokens - cached,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": cached,
            "output_tokens": output_tokens,
        }
        if reasoning_tokens is not None:
            usage["output_tokens_details"] = {"thinking_tokens": reasoning_tokens}
        return usage

    def _stop(self, reason: int, stop_string: str | None, parts: Sequence[Part]) -> tuple[str, str | None]:
        """stop_reason and stop_sequence."""
        match reason:
            case FinishReason.LENGTH:
                return self._at_the_limit, None
            case FinishReason.DEADLINE:
                return "deadline", None  # ours; the others are Anthropic's words
            case _ if stop_string is not None:
                return "stop_sequence", stop_string
            case _ if any(part.kind is OutputKind.TOOL_ARGUMENTS for part in parts):
                return "tool_use", None
            case _:
                return "end_turn", None
