"""From the records of a ring to tokens with their logprobs.

Owns how records belong together. `rbee.server.streams.choices` decides which tokens an answer lists.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from rbee.messages import SIDE_RECORD

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rbee.sampling_params import SamplingParams
    from rbee.server.link.sinks import TokenBatch


class ScoredToken(NamedTuple):
    """A token with its logprobs."""

    token_id: int
    logprob: float  # natural logarithm; NaN in a sequence that asked for none
    top: list[tuple[int, float]]  # (token id, logprob) of the most likely tokens, best first, as many as asked for
    committed_ns: int  # when the engine published it, CLOCK_MONOTONIC
    rank: int | None = None  # of a prompt's token: its place among all tokens, from 1; None: it is output


class TokenLogprob(NamedTuple):
    """An entry in the list of logprobs of an answer."""

    token_id: int
    logprob: float | None  # None for the first token of a prompt, which follows nothing
    top: list[tuple[int, float]]  # see `ScoredToken`
    offset: int  # characters before its text in the whole text of the choice
    rank: int | None = None  # see `ScoredToken`; None for the first token of a prompt too


class TokenRecords:
    """Joins each token of one sequence to its `rbee.messages.SIDE_RECORD`s.

    A batch may end between a token and its side records; the token comes with the batch that completes it. The records
    of a prompt's token hold its rank, not its id: `prompt_token_ids` has that.
    """

    def __init__(self, sampling: SamplingParams, prompt_token_ids: list[int]) -> None:
        prompt_records = sampling.num_prompt_logprobs
        self.scores_prompt = prompt_records is not None
        self._num_logprobs = sampling.num_logprobs
        # Those of the prompt that are still to come, the last one first; the first token has no logprob.
        self._prompt_left = [] if prompt_records is None else prompt_token_ids[:0:-1]
        self._prompt_size = 1 + (prompt_records or 0)
        self._size = 1 + (sampling.num_logprobs or 0)
        self._group: list[tuple[int, float]] = []

    def take(self, batch: TokenBatch) -> Iterator[ScoredToken]:
        """The tokens that are complete with this batch, in order."""
        for token_id, logprob, committed_ns in zip(batch.token_ids, batch.logprobs, batch.commit_ns, strict=True):
            self._group.append((token_id & ~SIDE_RECORD, logprob))
            if len(self._group) == (self._prompt_size if self._prompt_left else self._size):
                (own, own_logprob), *top = self._group
                self._group = []
                if self._prompt_left:
                    yield ScoredToken(self._prompt_left.pop(), own_logprob, top, committed_ns, rank=own)
                else:
                    yield ScoredToken(own, own_logprob, top, committed_ns)

    def echoed(self, entries: list[TokenLogprob]) -> list[TokenLogprob]:
        """Those of a prompt as its echo lists them: with as many others as the output's tokens have, if these have any.

        A prompt may have been scored with more.
        """
        if self._num_logprobs is None:
            return []
        return [entry._replace(top=entry.top[: self._num_logprobs]) for entry in entries]
