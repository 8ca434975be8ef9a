"""Tokens with their logprobs, as OpenAI's chats and Responses list them.

Owns that form. `rbee.server.streams.choices` decides which tokens a piece of an output lists.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

from rbee.server.protocols.openapi import Shape

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rbee.server.streams.records import TokenLogprob

LEAST = -9999.0  # of a token that cannot come, as vLLM has it: JSON has no infinity

TokenBytes: TypeAlias = Callable[[int], bytes]


class LikelyToken(Shape):
    """A token that is likely at its place."""

    token: str
    logprob: float
    bytes: list[int]


class ListedToken(LikelyToken):
    """A token, and the most likely ones at its place."""

    top_logprobs: list[LikelyToken]


def listed_tokens(entries: Sequence[TokenLogprob], *, token_bytes: TokenBytes) -> list[dict[str, Any]]:
    """Token, logprob and bytes of each token and of the most likely ones.

    A token that is no valid text alone has U+FFFD in `token`; its `bytes` are exact.
    """

    def shown(token_id: int, logprob: float | None) -> dict[str, Any]:
        data = token_bytes(token_id)
        return {"token": data.decode(errors="replace"), "logprob": finite(logprob), "bytes": list(data)}

    return [
        shown(entry.token_id, entry.logprob) | {"top_logprobs": [shown(*other) for other in entry.top]}
        for entry in entries
    ]


def finite(logprob: float | None) -> float | None:
    """None for a token that has none: the first of a prompt."""
    return None if logprob is None else max(logprob, LEAST)
