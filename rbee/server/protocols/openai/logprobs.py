"""Logprobs as OpenAI's routes list them, and those of prompts as vLLM does.

Owns the forms that clients understand. `rbee.server.streams.choices` decides which tokens a chunk lists.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from rbee.server.text.token_text import token_name

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rbee.server.streams.records import TokenLogprob

LEAST = -9999.0  # of a token that cannot come, as vLLM has it: JSON has no infinity

TokenBytes: TypeAlias = Callable[[int], bytes]


class Format(Protocol):
    """Makes the `logprobs` of a choice: `chat_logprobs` or `completion_logprobs`."""

    def __call__(self, entries: Sequence[TokenLogprob], *, token_bytes: TokenBytes) -> dict[str, Any]: ...


def chat_logprobs(entries: Sequence[TokenLogprob], *, token_bytes: TokenBytes) -> dict[str, Any]:
    """The `logprobs` of a chat choice: token, logprob and bytes of each token and of the most likely ones.

    A token that is no valid text alone has U+FFFD in `token`; its `bytes` are exact.
    """

    def shown(token_id: int, logprob: float | None) -> dict[str, Any]:
        data = token_bytes(token_id)
        return {"token": data.decode(errors="replace"), "logprob": _finite(logprob), "bytes": list(data)}

    return {
        "content": [
            shown(entry.token_id, entry.logprob) | {"top_logprobs": [shown(*other) for other in entry.top]}
            for entry in entries
        ]
    }


def completion_logprobs(entries: Sequence[TokenLogprob], *, token_bytes: TokenBytes) -> dict[str, Any]:
    """The `logprobs` of a plain completion: parallel lists.

    The token itself is in `top_logprobs` too, so that there may be one more than was asked for. Of two tokens that are
    written alike the more likely one is there.
    """
    top_logprobs: list[dict[str, float | None] | None] = []
    for entry in entries:
        top: dict[str, float | None] = {}
        for token_id, logprob in [*entry.top, (entry.token_id, entry.logprob)]:
            top.setdefault(token_name(token_bytes(token_id)), _finite(logprob))
        top_logprobs.append(None if entry.logprob is None else top)
    return {
        "text_offset": [entry.offset for entry in entries],
        "token_logprobs": [_finite(entry.logprob) for entry in entries],
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
            member = {"logprob": _finite(logprob), "rank": rank, "decoded_token": decoded}
            members.setdefault(str(token_id), member)
        listed.append(members)
    return listed


def _finite(logprob: float | None) -> float | None:
    return None if logprob is None else max(logprob, LEAST)
