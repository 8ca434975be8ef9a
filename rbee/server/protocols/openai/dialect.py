"""OpenAI's two dialects: chat completions and plain completions.

Owns what their answers and streams are made of. `rbee.server.protocols.openai.frames` owns the bytes of chunks.
"""

from __future__ import annotations

import re
import time
import uuid
from typing import TYPE_CHECKING, Any, ClassVar

import msgspec

from rbee.server.http import refusals, sse
from rbee.server.protocols.openai.frames import FINISH_NAMES, Chunks, error, logprobs_member
from rbee.server.protocols.openai.logprobs import chat_logprobs, completion_logprobs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rbee.server.errors import Refusal
    from rbee.server.protocols.openai.logprobs import Format, TokenBytes
    from rbee.server.protocols.openai.schemas import StreamOptions
    from rbee.server.streams.dialect import CollectedChoice, Piece
    from rbee.server.streams.generation import Generation
    from rbee.server.streams.outcome import Outcome
    from rbee.server.streams.records import TokenLogprob
    from rbee.transport import FrameTemplate

WARNING_BYTES = 900  # for the names of ignored fields: aiohttp refuses headers of 8 KiB, nginx of 4
_SANE_NAME = re.compile(r"[\w.\[\]-]{1,64}", re.ASCII)
_INDEX = re.compile(r"\[\d+\]")
_ENTRIES_AT_ONCE = 32  # tokens with their logprobs that are encoded without a break: some 0.5 ms
_JSON = (b"content-type", b"application/json")


class OpenAiDialect:
    """What both have in common: see `rbee.server.streams.dialect.Dialect`.

    `token_bytes` is a token as it is on its own, for logprobs; `ignored` names the fields that are not followed;
    `created` is UNIX time in seconds, now if None.
    """

    _CHAT: ClassVar[bool]
    _ID_PREFIX: ClassVar[str]
    _OBJECT: ClassVar[str]
    _CHUNK_OBJECT: ClassVar[str]
    _format_logprobs: Format

    keep_alive = sse.KEEP_ALIVE

    def __init__(
        self,
        model: str,
        generation: Generation,
        options: StreamOptions,
        token_bytes: TokenBytes,
        ignored: Sequence[str] = (),
        *,
        created: int | None = None,
    ) -> None:
        self.answer_id = self._ID_PREFIX + uuid.uuid4().hex
        named = warning(ignored)
        self.stream_headers: Sequence[tuple[bytes, bytes]] = [*sse.HEADERS, *named]
        self.answer_headers: Sequence[tuple[bytes, bytes]] = [_JSON, *named]
        self._created = int(time.time()) if created is None else created
        self._model = model
        self._options = options
        self._token_bytes = token_bytes
        self._prompt_tokens = len(generation.prompt)
        self._num_choices = generation.n
        self._has_logprobs = generation.has_logprobs
        self._has_timings = generation.timings
        self._chunks: Chunks | None = None

    def begin(self) -> bytes:
        return b""  # the role comes with the first token

    def piece(self, choice: int, piece: Piece, number: int) -> bytes:
        chunks = self._chunks or self._frames()
        return chunks.text(choice, number, piece, self._entries(piece) if self._has_logprobs else b"")

    def end(self, choice: int, piece: Piece, number: int, reason: int) -> bytes:
        return self._frames().last(choice, number, piece, reason, self._entries(piece))

    def finish(self, outcome: Outcome) -> bytes:
        frames = self._frames()
        return frames.usage(outcome.completion_tokens, outcome.cached_tokens, outcome.timings) + sse.DONE

    def error(self, refusal: Refusal) -> bytes:
        return error(refusals.envelope(refusal)) + sse.DONE

    def template(self) -> FrameTemplate | None:
        if self._has_logprobs:
            return None
        template = self._frames().template()
        return template._replace(end=b"") if self._has_timings else template

    def answer(self, choices: Sequence[CollectedChoice], outcome: Outcome) -> bytes:
        usage: dict[str, Any] = {
            "prompt_tokens": self._prompt_tokens,
            "completion_tokens": outcome.completion_tokens,
            "total_tokens": self._prompt_tokens + outcome.completion_tokens,
        }
        if outcome.cached_tokens is not None:
            usage["prompt_tokens_details"] = {"cached_tokens": outcome.cached_tokens}
        answer = {
            "id": self.answer_id,
            "object": self._OBJECT,
            "created": self._created,
            "model": self._model,
            "choices": [self._choice(index, choice) for index, choice in enumerate(choices)],
            "usage": usage,
        }
        if outcome.timings is not None:
            answer["timings"] = outcome.timings
        return msgspec.json.encode(answer)

    def _text_member(self, text: str) -> dict[str, Any]:
        raise NotImplementedError

    def _choice(self, index: int, choice: CollectedChoice) -> dict[str, Any]:
        return {
            "index": index,
            "finish_reason": FINISH_NAMES[choice.reason],
            "logprobs": self._encoded(choice.entries) if self._has_logprobs else None,
        } | self._text_member(choice.text)

    def _encoded(self, entries: Sequence[TokenLogprob]) -> msgspec.Raw:
        """A few at a time, between which other threads can run: there may be hundreds of thousands."""
        members: dict[str, list[bytes]] = {}
        for start in range(0, max(len(entries), 1), _ENTRIES_AT_ONCE):
            listed = self._format_logprobs(entries[start : start + _ENTRIES_AT_ONCE], token_bytes=self._token_bytes)
            for name, values in listed.items():
                members.setdefault(name, []).append(msgspec.json.encode(values)[1:-1])
        lists = [b'"%b":[%b]' % (name.encode(), b",".join(parts)) for name, parts in members.items()]
        return msgspec.Raw(b"{%b}" % b",".join(lists))

    def _listed(self, piece: Piece) -> dict[str, Any]:
        return self._format_logprobs(piece.entries, token_bytes=self._token_bytes)

    def _entries(self, piece: Piece) -> bytes:
        return logprobs_member(self._listed(piece)) if self._has_logprobs and piece.entries else b""

    def _frames(self) -> Chunks:
        if self._chunks is None:  # the answer turns out to be a stream
            self._chunks = Chunks(
                kind=self._CHUNK_OBJECT,
                answer_id=self.answer_id,
                created=self._created,
                model=self._model,
                chat=self._CHAT,
                options=self._options,
                prompt_tokens=self._prompt_tokens,
                num_choices=self._num_choices,
            )
        return self._chunks


class ChatDialect(OpenAiDialect):
    """POST /v1/chat/completions."""

    _CHAT = True
    _ID_PREFIX = "chatcmpl-"
    _OBJECT = "chat.completion"
    _CHUNK_OBJECT = "chat.completion.chunk"
    _format_logprobs = staticmethod(chat_logprobs)

    def _text_member(self, text: str) -> dict[str, Any]:
        return {"message": {"role": "assistant", "content": text}}


class CompletionDialect(OpenAiDialect):
    """POST /v1/completions."""

    _CHAT = False
    _ID_PREFIX = "cmpl-"
    _OBJECT = "text_completion"
    _CHUNK_OBJECT = "text_completion"
    _format_logprobs = staticmethod(completion_logprobs)

    def _text_member(self, text: str) -> dict[str, Any]:
        return {"text": text}


def warning(ignored: Sequence[str]) -> list[tuple[bytes, bytes]]:
    """The header that names the ignored fields (RFC 9111 still lists 299: a miscellaneous warning).

    Each kind is named once, as in messages[].id, and no more of them than clients take in a header.
    """
    if not ignored:
        return []
    kinds = dict.fromkeys(
        _INDEX.sub("[]", name) if _SANE_NAME.fullmatch(name) else "?" for name in dict.fromkeys(ignored)
    )
    named: list[str] = []
    room = WARNING_BYTES
    for kind in kinds:
        room -= len(kind) + len(", ")
        if room < 0:
            named.append(f"and {len(kinds) - len(named)} more")
            break
        named.append(kind)
    return [(b"warning", f'299 - "ignored: {", ".join(named)}"'.encode())]
