"""The frames of OpenAI's streams: everything that is constant in a stream rendered once, before its first token.

Owns the bytes of chunks. Knows neither where the text comes from nor where the bytes go.
"""

from __future__ import annotations

from typing import Any

import msgspec

from rbee.transport import FrameTemplate, LastFrames, Slot

DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"
HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]

_USAGE = b',"usage":{"prompt_tokens":%b,"completion_tokens":%b,"total_tokens":%b%b}'
_CACHED = b',"prompt_tokens_details":{"cached_tokens":%b}'
_TIMING = b',"timing":{"committed_ns":%b}'

_encode = msgspec.json.Encoder().encode


class Frames:
    """The chunks of one choice of a stream, in two dialects. The role comes with the first chunk, never before it."""

    __slots__ = ("_after", "_before", "_before_first", "_before_next", "_empty", "_head", "_usage")

    def __init__(
        self, *, kind: str, request_id: str, created: int, model: str, chat: bool, usage: bool, index: int = 0
    ) -> None:
        """Render what is constant.

        Args:
            kind: the chunks' `object`.
            request_id: their `id`.
            created: UNIX time, in seconds.
            model: the served model's name.
            chat: chunks with a `delta` (chat completions) or with `text` (completions).
            usage: the stream ends with a usage chunk; the others then say `"usage": null`.
            index: of the choice.
        """
        constant = _encode({"id": request_id, "object": kind, "created": created, "model": model})
        self._head = b"data: " + constant[:-1] + b',"choices":['
        choice = self._head + b'{"index":%d,' % index
        if chat:
            self._before = choice + b'"delta":{"role":"assistant","content":'
            self._before_next = choice + b'"delta":{"content":'
            self._empty = choice + b'"delta":{'
            self._after = b"}"
        else:
            self._before = self._before_next = choice + b'"text":'
            self._empty = choice + b'"text":""'
            self._after = b""
        self._before_first = self._before
        self._usage = b',"usage":null' if usage else b""

    def template(self, prompt_tokens: int, *, usage: bool, running_usage: bool, timing: bool) -> FrameTemplate:
        """All frames of the stream, for the native drain.

        Args:
            prompt_tokens: of the request.
            usage: a chunk with the token counts comes last.
            running_usage: each chunk counts the tokens so far.
            timing: each chunk has the time at which its token was committed.
        """
        counts = (b"%d" % prompt_tokens, Slot.NUM_TOKENS, Slot.TOTAL_TOKENS)
        extra = _TIMING % Slot.COMMITTED_NS if timing else b""
        extra += _USAGE % (*counts, b"") if running_usage else b""
        if extra:
            extra = Slot.TOKEN_BEGIN + extra + Slot.TOKEN_END
        rest = b'%b,"finish_reason":%b}]%b%b}\n\n'

        def last_frames(reason: bytes) -> LastFrames:
            after = rest % (self._after, reason, self._usage, extra)
            return LastFrames(
                first_last=self._before + Slot.TEXT + after,
                next_last=self._before_next + Slot.TEXT + after,
                last=self._empty + after,
                empty=self._before + b'""' + after,
            )

        after = rest % (self._after, b"null", self._usage, extra)
        return FrameTemplate(
            first=self._before + Slot.TEXT + after,
            next=self._before_next + Slot.TEXT + after,
            stop=last_frames(b'"stop"'),
            length=last_frames(b'"length"'),
            deadline=last_frames(b'"deadline"'),
            end=(b"%b]%b}\n\n" % (self._head, _USAGE % (*counts, _CACHED % Slot.CACHED_TOKENS)) if usage else b"")
            + DONE,
        )

    def text(self, text: str, extra: bytes = b"", logprobs: bytes = b"") -> bytes:
        """A chunk with text. `extra` is more JSON for the chunk, `logprobs` for the choice; both begin with a comma."""
        frame = b'%b%b%b%b,"finish_reason":null}]%b%b}\n\n' % (
            self._before, _encode(text), self._after, logprobs, self._usage, extra
        )  # fmt: skip
        self._before = self._before_next
        return frame

    def last(self, text: str, finish_reason: str, extra: bytes = b"", logprobs: bytes = b"") -> bytes:
        """The last chunk of the choice; with no text it has an empty delta, unless it is the first one too."""
        first = self._before is not self._before_next
        body = self._before + _encode(text) if text or first else self._empty
        return b'%b%b%b,"finish_reason":"%b"}]%b%b}\n\n' % (
            body, self._after, logprobs, finish_reason.encode(), self._usage, extra
        )  # fmt: skip

    def usage(self, prompt_tokens: int, completion_tokens: int, cached_tokens: int | None) -> bytes:
        """The chunk with the token counts and no choices."""
        return b"%b]%b}\n\n" % (self._head, usage_member(prompt_tokens, completion_tokens, cached_tokens))

    @staticmethod
    def error(envelope: bytes) -> bytes:
        """An error in mid-stream, instead of a last chunk."""
        return error(envelope)

    @staticmethod
    def done() -> bytes:
        """What comes after everything else."""
        return DONE

    def rewind(self) -> None:
        """The next chunk is the first one again."""
        self._before = self._before_first


def usage_member(prompt_tokens: int, completion_tokens: int, cached_tokens: int | None = None) -> bytes:
    """`,"usage":{...}`: token counts as a further member of a JSON object.

    `cached_tokens` of the prompt's were in the prefix cache; None while that is not known.
    """
    details = b"" if cached_tokens is None else _CACHED % (b"%d" % cached_tokens)
    total = prompt_tokens + completion_tokens
    return _USAGE % (b"%d" % prompt_tokens, b"%d" % completion_tokens, b"%d" % total, details)


def timing_member(committed_ns: int) -> bytes:
    """`,"timing":{...}`: when the engine committed the chunk's token, CLOCK_MONOTONIC."""
    return _TIMING % (b"%d" % committed_ns)


def logprobs_member(logprobs: dict[str, Any]) -> bytes:
    """`,"logprobs":{...}`: what is said of the tokens that begin to show in a chunk."""
    return b',"logprobs":' + _encode(logprobs)


def error(envelope: bytes) -> bytes:
    """An error in mid-stream."""
    return b"data: " + envelope + b"\n\n"
