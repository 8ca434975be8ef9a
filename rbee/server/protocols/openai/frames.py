"""The chunks of OpenAI's streams, once as bytes and once as templates for the native drain.

Owns the JSON of chunks. What is constant in a stream is rendered once, before its first token. Knows neither where the
text comes from nor where the bytes go.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from rbee.messages import FinishReason
from rbee.server.http.sse import DONE
from rbee.server.protocols.openai.message import FINISH_NAMES, NO_REASONING, ROLE, delta, finish_name
from rbee.server.text.output import OutputKind
from rbee.transport import FrameTemplate, LastFrames, Slot

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rbee.server.protocols.openai.schemas import StreamOptions
    from rbee.server.streams.pieces import Piece

_encode = msgspec.json.Encoder().encode
_FINISH = {reason: _encode(name) for reason, name in FINISH_NAMES.items()}
_TEXT = OutputKind.TEXT  # looked up for each chunk
_NOT_YET = b"null"
_TIMING = b',"timing":{"committed_ns":%b}'  # when the engine committed the chunk's token, CLOCK_MONOTONIC
_END = b"}\n\n"


class Members(NamedTuple):
    """What a chunk has further, each with a comma before it: see `member`."""

    of_choice: bytes = b""
    of_chunk: bytes = b""


NO_MEMBERS = Members()


class Chunks:
    """The chunks of one answer. The role comes with the first chunk of a choice, never before it.

    Args:
        kind: the chunks' `object`.
        answer_id: their `id`.
        created: UNIX time in seconds.
        model: its name.
        fingerprint: `system_fingerprint`; none if it is empty.
        chat: chunks have a `delta`, else `text`.
        options: what else they carry.
        prompt_tokens: of each prompt.
        n: choices of each prompt.
        has_reasoning: the model may reason, so that each `delta` has `reasoning_content`.
    """

    def __init__(
        self,
        *,
        kind: str,
        answer_id: str,
        created: int,
        model: str,
        chat: bool,
        options: StreamOptions,
        prompt_tokens: Sequence[int],
        n: int = 1,
        fingerprint: str = "",
        has_reasoning: bool = False,
    ) -> None:
        named: dict[str, Any] = {"id": answer_id, "object": kind, "created": created, "model": model}
        if fingerprint:
            named["system_fingerprint"] = fingerprint
        constant = _encode(named)
        self._head = b"data: " + constant[:-1] + b',"choices":['
        self._answer_id = answer_id
        nothing = NO_REASONING if has_reasoning else b""
        self._choices = [
            _Choice(self._head, index, chat=chat, nothing=nothing) for index in range(n * len(prompt_tokens))
        ]
        self._after = b"}" if chat else b""
        self._counts_on = options.include_usage and options.continuous_usage_stats
        # Where a last chunk has the usage, the others say that they have none.
        self._no_usage = b',"usage":null' if options.include_usage and not self._counts_on else b""
        self._options = options
        self._prompt_tokens = prompt_tokens
        self._n = n
        self._has_extra = options.include_timing or self._counts_on
        self._after_text = self._chunk(b"", b"", _NOT_YET, b"").removesuffix(_END)  # of most chunks

    def text(self, choice: int, number: int, piece: Piece, members: Members) -> bytes:
        """The chunk of a piece, the `number`th of its choice."""
        parts = self._choices[choice]
        if piece.kind is _TEXT:
            body = (parts.next if number else parts.first) + _encode(piece.text)
        else:
            body = parts.other + (b"" if number else ROLE) + delta(self._answer_id, choice, piece, parts.nothing)
        if members is not NO_MEMBERS:
            return self._chunk(body, members.of_choice, _NOT_YET, self._extra(choice, piece) + members.of_chunk)
        extra = self._extra(choice, piece) if self._has_extra else b""
        return body + self._after_text + extra + _END

    def last(self, choice: int, number: int, piece: Piece, reason: int, members: Members) -> bytes:
        """The last chunk of a choice; with no text it has an empty delta, unless it is the first one too."""
        parts = self._choices[choice]
        body = parts.empty
        if piece.kind is not _TEXT:
            body = parts.other + (b"" if number else ROLE) + delta(self._answer_id, choice, piece, parts.nothing)
        elif piece.text or number == 0:
            body = (parts.next if number else parts.first) + _encode(piece.text)
        extra = self._extra(choice, piece) + members.of_chunk
        finish = _encode(finish_name(reason, has_calls=piece.num_calls > 0))
        return self._chunk(body, members.of_choice, finish, extra)

    def usage(
        self,
        completion_tokens: int,
        cached_tokens: int | None,
        timings: dict[str, float] | None = None,
        reasoning_tokens: int | None = None,
    ) -> bytes:
        """The chunk with the token counts, the timings or both, and no choices; empty if the stream has neither.

        `reasoning_tokens` are those of the completion that are reasoning; None if nobody has looked for any.
        """
        members = b""
        if self._options.include_usage:
            prompt_tokens = sum(self._prompt_tokens)
            counts = b"%d" % completion_tokens, b"%d" % (prompt_tokens + completion_tokens)
            cached = b"" if cached_tokens is None else b"%d" % cached_tokens
            members = _usage(prompt_tokens, *counts, cached)
            if reasoning_tokens is not None:
                members += b',"completion_tokens_details":{"reasoning_tokens":%d}' % reasoning_tokens
            members += b"}"
        if timings is not None:
            members += b',"timings":' + _encode(timings)
        return b"%b]%b" % (self._head, members + _END) if members else b""

    def template(self) -> FrameTemplate:
        """The same chunks, of an only choice without logprobs."""
        parts = self._choices[0]
        first, following = parts.first + Slot.TEXT, parts.next + Slot.TEXT
        extra = self._template_extra()

        def last_frames(reason: FinishReason) -> LastFrames:
            return LastFrames(
                first_last=self._chunk(first, b"", _FINISH[reason], extra),
                next_last=self._chunk(following, b"", _FINISH[reason], extra),
                last=self._chunk(parts.empty, b"", _FINISH[reason], extra),
                empty=self._chunk(parts.first + b'""', b"", _FINISH[reason], extra),
            )

        return FrameTemplate(
            first=self._chunk(first, b"", _NOT_YET, extra),
            next=self._chunk(following, b"", _NOT_YET, extra),
            stop=last_frames(FinishReason.STOP),
            length=last_frames(FinishReason.LENGTH),
            deadline=last_frames(FinishReason.DEADLINE),
            end=self._template_end(),
        )

    def _chunk(self, body: bytes, members: bytes, finish: bytes, extra: bytes) -> bytes:
        return b'%b%b%b,"finish_reason":%b}]%b%b}\n\n' % (body, self._after, members, finish, self._no_usage, extra)

    def _extra(self, choice: int, piece: Piece) -> bytes:
        """The members that describe a chunk's last token; none if it has none."""
        committed_ns, num_tokens = piece.committed_ns, piece.num_tokens
        if committed_ns is None or not self._has_extra:
            return b""
        extra = _TIMING % (b"%d" % committed_ns) if self._options.include_timing else b""
        if self._counts_on:
            prompt_tokens = self._prompt_tokens[choice // self._n]
            extra += _usage(prompt_tokens, b"%d" % num_tokens, b"%d" % (prompt_tokens + num_tokens), b"") + b"}"
        return extra

    def _template_extra(self) -> bytes:
        extra = _TIMING % Slot.COMMITTED_NS if self._options.include_timing else b""
        if self._counts_on:
            extra += _usage(self._prompt_tokens[0], Slot.NUM_TOKENS, Slot.TOTAL_TOKENS, b"") + b"}"
        return Slot.TOKEN_BEGIN + extra + Slot.TOKEN_END if extra else b""

    def _template_end(self) -> bytes:
        if not self._options.include_usage:
            return DONE
        return self._usage_chunk(Slot.NUM_TOKENS, Slot.TOTAL_TOKENS, Slot.CACHED_TOKENS) + DONE

    def _usage_chunk(self, completion_tokens: bytes, total_tokens: bytes, cached_tokens: bytes) -> bytes:
        usage = _usage(self._prompt_tokens[0], completion_tokens, total_tokens, cached_tokens)
        return b"%b]%b}}\n\n" % (self._head, usage)


def _usage(prompt_tokens: int, completion_tokens: bytes, total_tokens: bytes, cached_tokens: bytes) -> bytes:
    """The member `usage` without its closing brace."""
    details = b',"prompt_tokens_details":{"cached_tokens":%b}' % cached_tokens if cached_tokens else b""
    return b',"usage":{"prompt_tokens":%d,"completion_tokens":%b,"total_tokens":%b%b' % (
        prompt_tokens, completion_tokens, total_tokens, details
    )  # fmt: skip


class _Choice:
    """What is constant in the chunks of one choice, up to the text.

    `empty` is for a last chunk without text, `other` for what is no text. Where there is no reasoning, `nothing` says
    so.
    """

    __slots__ = ("empty", "first", "next", "nothing", "other")

    def __init__(self, head: bytes, index: int, *, chat: bool, nothing: bytes) -> None:
        choice = head + b'{"index":%d,' % index
        self.nothing = nothing + b"," if nothing else b""
        if chat:
            self.other = choice + b'"delta":{'
            self.first = self.other + b'"role":"assistant",' + self.nothing + b'"content":'
            self.next = self.other + self.nothing + b'"content":'
            self.empty = self.other + nothing
        else:
            self.first = self.next = choice + b'"text":'
            self.empty = self.other = choice + b'"text":""'


def member(name: str, value: Any) -> bytes:
    """A further member of a chunk or of a choice, with the comma before it."""
    return b',"%b":%b' % (name.encode(), _encode(value))


def error(envelope: bytes) -> bytes:
    """An error in mid-stream, in place of a last chunk."""
    return b"data: " + envelope + b"\n\n"
