"""Logprobs as OpenAI's routes list them, and those of prompts as vLLM does.

Owns the forms that clients understand. `rbee.server.streams.choices` decides which tokens a chunk lists.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from rbee.server.protocols.token_logprobs import finite, listed_tokens
from rbee.server.text.token_text import token_name

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rbee.server.protocols.token_logprobs import TokenBytes
    from rbee.server.streams.records import TokenLogprob


class Format(Protocol):
    """Makes the `logprobs` of a choice: `chat_logprobs` or `completion_logprobs`."""

    def __call__(self, entries: Sequence[TokenLogprob], *, token_bytes: TokenBytes) -> dict[str, Any]: ...


def chat_logprobs(entries: Sequence[TokenLogprob], *, token_bytes: TokenBytes) -> dict[str, Any]:
    """The `logprobs` of a chat choice."""
    return {"content": listed_tokens(entries, token_bytes=token_bytes)}


def completion_logprobs(entries: Sequence[TokenLogprob], *, token_bytes: TokenBytes) -> dict[str, Any]:
    """The `logprobs` of a plain completion: parallel lists.

    The token itself is in `top_logprobs` too, so that there may be one more than was asked for. Of two tokens that are
    written alike the more likely one is there.
    """
    top_logprobs: list[dict[str, float | None] | None] = []
    for entry in entries:
        top: dict[str, float | None] = {}
        for token_id, logprob in [*entry.top, (entry.token_id, entry.logprob)]:
            top.setdefault(token_name(token_bytes(token_id)), finite(logprob))
        top_logprobs.append(None if entry.logprob is None else top)
    return {
        "text_offset": [entry.offset for entry in entries],
        "token_logprobs": [finite(entry.logprob) for entry in entries],
        "tokens": [token_name(token_bytes(entry.token_id)) for entry in entries],
        "top_logprobs": top_logprobs,
    }


def prompt_logprobs(
    entries: Sequence[TokenLogprob], number: int, *, token_bytes: TokenBytes
) -> list[dict[str, dict[str, Any]] | None]:
    """The `prompt_logprobs` of an answer: for each token of the prompt itself and `number` others, by their ids.

    The first token follows nothing, and has none. `rank` counts from 1, among all tokens of the vocabulary.
    """
    listed: list[dict[str, dict[str, Any]] | None] = []
    for entry in entries:
        if entry.logprob is None:
            listed.append(None)
            continue
        likely = [(token_id, logprob, rank) for rank, (token_id, logprob) in enumerate(entry.top[:number], start=1)]
        members: dict[str, dict[str, Any]] = {}
        for token_id, logprob, rank in [(entry.token_id, entry.logprob, entry.rank), *likely]:
            decoded = token_bytes(token_id).decode(errors="replace")
            member = {"logprob": finite(logprob), "rank": rank, "decoded_token": decoded}
            members.setdefault(str(token_id), member)
        listed.append(members)
    return listed
