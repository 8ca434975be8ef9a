"""The frames of OpenAI's streams: everything that is constant in a stream rendered once, before its first token.

Owns the bytes of chunks. Knows neither where the text comes from nor where the bytes go.
"""

from __future__ import annotations

from typing import Any

import msgspec

DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"
HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]

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

    def parts(self, *, usage: bool) -> tuple[bytes, bytes, bytes, bytes, bytes, bytes, bytes, bytes, bytes]:
        """What is constant in all of the stream's frames, as `rbee.transport.Outlet` takes it.

        Args:
            usage: a chunk with the token counts comes last.
        """
        finish = b'%b,"finish_reason":%b}]%b'
        return (
            self._before,
            self._before_next,
            self._empty,
            finish % (self._after, b"null", self._usage),
            finish % (self._after, b'"stop"', self._usage),
            finish % (self._after, b'"length"', self._usage),
            finish % (self._after, b'"deadline"', self._usage),
            self._head + b"]" if usage else b"",
            DONE,
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
    details = b"" if cached_tokens is None else b',"prompt_tokens_details":{"cached_tokens":%d}' % cached_tokens
    return b',"usage":{"prompt_tokens":%d,"completion_tokens":%d,"total_tokens":%d%b}' % (
        prompt_tokens, completion_tokens, prompt_tokens + completion_tokens, details
    )  # fmt: skip


def timing_member(committed_ns: int) -> bytes:
    """`,"timing":{...}`: when the engine committed the chunk's token, CLOCK_MONOTONIC."""
    return b',"timing":{"committed_ns":%d}' % committed_ns


def logprobs_member(logprobs: dict[str, Any]) -> bytes:
    """`,"logprobs":{...}`: what is said of the tokens that begin to show in a chunk."""
    return b',"logprobs":' + _encode(logprobs)


def error(envelope: bytes) -> bytes:
    """An error in mid-stream."""
    return b"data: " + envelope + b"\n\n"
