"""Logprobs: from the records of a ring to what OpenAI's routes say of each token.

Owns how records belong together and the two forms in which clients know logprobs. Which tokens an answer lists, and
in which chunk, is `rbee.server.streams.choices`' business.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from rbee.messages import SIDE_RECORD

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from rbee.sampling_params import SamplingParams
    from rbee.server.link.sinks import TokenBatch

LEAST = -9999.0
"""What is said of a token that cannot come: JSON has no infinity. Clients know this number from vLLM."""


class ScoredToken(NamedTuple):
    """A token with what the engine says of it.

    Attributes:
        token_id: which.
        logprob: natural logarithm; NaN in a sequence that asked for none.
        top: the most likely tokens at its place as (token id, logprob), best first; as many as were asked for.
        committed_ns: when the engine published it, CLOCK_MONOTONIC.
        of_prompt: it is no output.
    """

    token_id: int
    logprob: float
    top: list[tuple[int, float]]
    committed_ns: int
    of_prompt: bool


class TokenRecords:
    """Puts the records of one sequence together again: each token with its notes, see `rbee.messages.SIDE_RECORD`.

    A batch may end anywhere, also between a token and its notes; the token comes with the batch that completes it.
    """

    def __init__(self, sampling: SamplingParams, num_prompt_tokens: int) -> None:
        """Expect what a sequence with these parameters publishes."""
        prompt_notes = sampling.num_prompt_logprobs
        self._prompt_left = 0 if prompt_notes is None else num_prompt_tokens - 1  # the first one has no logprob
        self._prompt_size = 1 + (prompt_notes or 0)
        self._size = 1 + (sampling.num_logprobs or 0)
        self._group: list[tuple[int, float]] = []

    def take(self, batch: TokenBatch) -> Iterator[ScoredToken]:
        """The tokens that are complete with this batch, in order."""
        for token_id, logprob, committed_ns in zip(batch.token_ids, batch.logprobs, batch.commit_ns, strict=True):
            self._group.append((token_id & ~SIDE_RECORD, logprob))
            of_prompt = self._prompt_left > 0
            if len(self._group) == (self._prompt_size if of_prompt else self._size):
                (own_id, own_logprob), *top = self._group
                self._group = []
                self._prompt_left -= of_prompt
                yield ScoredToken(own_id, own_logprob, top, committed_ns, of_prompt)


class TokenLogprob(NamedTuple):
    """An entry in an answer's list.

    Attributes:
        token_id: which.
        logprob: None for the first token of a prompt, which follows nothing.
        top: see `ScoredToken`.
        offset: where its text begins in the whole text of the choice, in characters.
    """

    token_id: int
    logprob: float | None
    top: list[tuple[int, float]]
    offset: int


TokenBytes: TypeAlias = "Callable[[int], bytes]"
Format: TypeAlias = "Callable[[Sequence[TokenLogprob]], dict[str, Any]]"


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


def token_name(data: bytes) -> str:
    r"""A token as completions write it: its text, or `bytes:\xf0\x9f` if that is no valid text alone."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def _finite(logprob: float | None) -> float | None:
    return None if logprob is None else max(logprob, LEAST)
