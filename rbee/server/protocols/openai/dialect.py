"""OpenAI's two dialects: chat completions and plain completions.

Owns what their answers and streams are made of. `rbee.server.protocols.openai.frames` owns the bytes of chunks.
"""

from __future__ import annotations

import time
import uuid
from typing import TYPE_CHECKING, Any, ClassVar

import msgspec

from rbee.server.http import refusals, sse
from rbee.server.protocols.ignored_fields import warning_header
from rbee.server.protocols.openai.frames import NO_MEMBERS, Chunks, Members, error, member
from rbee.server.protocols.openai.logprobs import chat_logprobs, completion_logprobs, prompt_logprobs
from rbee.server.protocols.openai.message import finish_name, message

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rbee.server.errors import Refusal
    from rbee.server.protocols.openai.logprobs import Format
    from rbee.server.protocols.openai.schemas import StreamOptions
    from rbee.server.protocols.token_logprobs import TokenBytes
    from rbee.server.streams.generation import Generation
    from rbee.server.streams.outcome import Outcome
    from rbee.server.streams.pieces import CollectedChoice, Piece
    from rbee.server.streams.records import TokenLogprob
    from rbee.transport import FrameTemplate

_ENTRIES_AT_ONCE = 32  # tokens with their logprobs that are encoded without a break: some 0.5 ms
_JSON = (b"content-type", b"application/json")


class OpenAiDialect:
    """What both have in common: see `rbee.server.streams.dialect.Dialect`.

    Args:
        model: its name.
        generation: what is answered.
        options: what else a stream carries.
        token_bytes: a token as it is on its own, for logprobs.
        ignored: names the fields that are not followed.
        prompt_logprobs: how many of the most likely tokens are listed for each token of the prompt; None: no list.
        fingerprint: `system_fingerprint`; none if it is empty.
        created: UNIX time in seconds, now if None.
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
        prompt_logprobs: int | None = None,
        fingerprint: str = "",
        created: int | None = None,
    ) -> None:
        self.answer_id = self._ID_PREFIX + uuid.uuid4().hex
        warning = warning_header(ignored)
        self.stream_headers: Sequence[tuple[bytes, bytes]] = [*sse.HEADERS, *warning]
        self.answer_headers: Sequence[tuple[bytes, bytes]] = [_JSON, *warning]
        self._created = int(time.time()) if created is None else created
        self._model = model
        self._options = options
        self._token_bytes = token_bytes
        self._fingerprint = fingerprint
        self._prompts = [prompt.token_ids for prompt in generation.prompts]
        self._n = generation.n
        self._prompt_logprobs = prompt_logprobs
        self._has_logprobs = generation.has_logprobs
        self._lists_tokens = generation.list_tokens
        self._has_members = self._has_logprobs or self._lists_tokens
        self._has_timings = generation.timings
        self._has_reasoning = generation.output is not None and generation.output.format.has_reasoning
        self._chunks: Chunks | None = None

    def begin(self) -> bytes:
        return b""  # the role comes with the first token

    def piece(self, choice: int, piece: Piece, number: int) -> bytes:
        chunks = self._chunks or self._frames()
        members = self._members(choice, piece, number) if self._has_members else NO_MEMBERS
        return chunks.text(choice, number, piece, members)

    def end(self, choice: int, piece: Piece, number: int, reason: int) -> bytes:
        return self._frames().last(choice, number, piece, reason, self._members(choice, piece, number))

    def finish(self, outcome: Outcome) -> bytes:
        frames = self._frames()
        counts = outcome.completion_tokens, outcome.cached_tokens
        return frames.usage(*counts, outcome.timings, outcome.reasoning_tokens) + sse.DONE

    def error(self, refusal: Refusal, number: int, last: Piece | None = None) -> bytes:  # noqa: ARG002 - no numbers
        return error(refusals.envelope(refusal)) + sse.DONE

    def template(self) -> FrameTemplate | None:
        if self._has_members:
            return None
        template = self._frames().template()
        return template._replace(end=b"") if self._has_timings else template

    def answer(self, choices: Sequence[CollectedChoice], outcome: Outcome) -> bytes:
        prompt_tokens = sum(map(len, self._prompts))
        usage: dict[str, Any] = {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": outcome.completion_tokens,
            "total_tokens": prompt_tokens + outcome.completion_tokens,
        }
        if outcome.cached_tokens is not None:
            usage["prompt_tokens_details"] = {"cached_tokens": outcome.cached_tokens}
        if outcome.reasoning_tokens is not None:
            usage["completion_tokens_details"] = {"reasoning_tokens": outcome.reasoning_tokens}
        answer: dict[str, Any] = {
            "id": self.answer_id,
            "object": self._OBJECT,
            "created": self._created,
            "model": self._model,
            "choices": [self._choice(index, choice) for index, choice in enumerate(choices)],
            "usage": usage,
        }
        if self._fingerprint:
            answer["system_fingerprint"] = self._fingerprint
        if self._CHAT:
            answer |= self._of_prompt(0, choices[0])
        if outcome.timings is not None:
            answer["timings"] = outcome.timings
        return msgspec.json.encode(answer)

    def _said(self, index: int, choice: CollectedChoice) -> dict[str, Any]:
        """The member with what a choice says."""
        raise NotImplementedError

    def _choice(self, index: int, choice: CollectedChoice) -> dict[str, Any]:
        members: dict[str, Any] = {
            "index": index,
            "finish_reason": finish_name(choice.reason, has_calls=choice.has_calls),
            "logprobs": self._encoded(choice.entries) if self._has_logprobs else None,
        } | self._said(index, choice)
        if not self._CHAT:
            members |= self._of_prompt(index, choice)
        if self._lists_tokens:
            members["token_ids"] = [token_id for piece in choice.pieces for token_id in _token_ids(piece)]
        return members

    def _of_prompt(self, index: int, choice: CollectedChoice) -> dict[str, Any]:
        """What is said of a choice's prompt, where vLLM says it: chats in the answer, completions in the choice."""
        scored = self._prompt_logprobs
        members: dict[str, Any] = {
            "prompt_logprobs": None if scored is None else self._encoded_prompt(choice.prompt_entries, scored)
        }
        if self._lists_tokens:
            members["prompt_token_ids"] = self._prompts[index // self._n]
        return members

    def _encoded_prompt(self, entries: Sequence[TokenLogprob], number: int) -> msgspec.Raw:
        """As `_encoded`."""
        parts = [
            msgspec.json.encode(
                prompt_logprobs(entries[start : start + _ENTRIES_AT_ONCE], number, token_bytes=self._token_bytes)
            )[1:-1]
            for start in range(0, len(entries), _ENTRIES_AT_ONCE)
        ]
        return msgspec.Raw(b"[%b]" % b",".join(parts))

    def _encoded(self, entries: Sequence[TokenLogprob]) -> msgspec.Raw:
        """A few at a time, between which other threads can run: there may be hundreds of thousands."""
        members: dict[str, list[bytes]] = {}
        for start in range(0, max(len(entries), 1), _ENTRIES_AT_ONCE):
            listed = self._format_logprobs(entries[start : start + _ENTRIES_AT_ONCE], token_bytes=self._token_bytes)
            for name, values in listed.items():
                members.setdefault(name, []).append(msgspec.json.encode(values)[1:-1])
        lists = [b'"%b":[%b]' % (name.encode(), b",".join(parts)) for name, parts in members.items()]
        return msgspec.Raw(b"{%b}" % b",".join(lists))

    def _members(self, choice: int, piece: Piece, number: int) -> Members:
        of_choice = of_chunk = b""
        if self._has_logprobs and piece.entries:
            of_choice = member("logprobs", self._format_logprobs(piece.entries, token_bytes=self._token_bytes))
        if self._lists_tokens:
            of_choice += member("token_ids", _token_ids(piece))
            if number == 0:
                prompt = member("prompt_token_ids", self._prompts[choice // self._n])
                of_choice, of_chunk = (of_choice, prompt) if self._CHAT else (of_choice + prompt, b"")
        return Members(of_choice, of_chunk)

    def _frames(self) -> Chunks:
        if self._chunks is None:  # the answer turns out to be a stream
            self._chunks = Chunks(
                kind=self._CHUNK_OBJECT,
                answer_id=self.answer_id,
                created=self._created,
                model=self._model,
                chat=self._CHAT,
                options=self._options,
                prompt_tokens=[len(prompt) for prompt in self._prompts],
                n=self._n,
                fingerprint=self._fingerprint,
                has_reasoning=self._has_reasoning,
            )
        return self._chunks


class ChatDialect(OpenAiDialect):
    """POST /v1/chat/completions."""

    _CHAT = True
    _ID_PREFIX = "chatcmpl-"
    _OBJECT = "chat.completion"
    _CHUNK_OBJECT = "chat.completion.chunk"
    _format_logprobs = staticmethod(chat_logprobs)

    def _said(self, index: int, choice: CollectedChoice) -> dict[str, Any]:
        said = message(self.answer_id, index, choice.parts, has_reasoning=self._has_reasoning)
        return {"message": said}


class CompletionDialect(OpenAiDialect):
    """POST /v1/completions."""

    _CHAT = False
    _ID_PREFIX = "cmpl-"
    _OBJECT = "text_completion"
    _CHUNK_OBJECT = "text_completion"
    _format_logprobs = staticmethod(completion_logprobs)

    def _said(self, index: int, choice: CollectedChoice) -> dict[str, Any]:  # noqa: ARG002 - it has no ids
        return {"text": choice.text}


def _token_ids(piece: Piece) -> list[int]:
    """Of the output's tokens that begin to show in this piece; that of an echoed prompt has none."""
    return [entry.token_id for entry in piece.entries] if piece.num_tokens else []
