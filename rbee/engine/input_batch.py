"""The arrays of one step, built from what the scheduler chose and dropped when the step is over.

Owns their layout. Does not know what computes with them: both runners read the same batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from rbee.engine.scheduler import Scheduled
    from rbee.engine.sequence import Sequence


class Scoring(NamedTuple):
    """Prompt tokens [start, end) of a sequence are scored in this step, each by the logits of the token before it.

    Attributes:
        row: of the sequence among the S.
        sequence: whose prompt it is.
        start: the first of the tokens; at least 1.
        end: behind the last one.
    """

    row: int
    sequence: Sequence
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class InputBatch:
    """T tokens of S sequences, packed without padding.

    Rows that decode (one token each) come first, those with the shortest context leading; then the chunks of several
    tokens, in the scheduler's order. A chunk of one token is a decode: there is no difference in the arithmetic.

    Attributes:
        sequences: the S sequences in row order.
        num_decodes: how many of them, from the first on, have exactly one token in this step.
        query_start: int64 [S + 1], where each sequence's tokens start in the T; the last entry is T.
        context_lens: int64 [S], tokens of each sequence in the KV cache once this step is done.
        token_ids: int64 [T].
        positions: int64 [T], each token's index in its sequence.
        slot_mapping: int64 [T], where its keys and values go: block * block_size + offset.
        block_tables: int64 [S, most blocks of any], padded with 0.
        logits_rows: int64 [n + m], which of the T rows yield logits: n that sample, then m that score a prompt.
        sampling: the n sequences that sample, in the order of their rows.
        scoring: the sequences whose prompts are scored, in the order of their rows among the m.
    """

    sequences: tuple[Sequence, ...]
    num_decodes: int
    query_start: NDArray[np.int64]
    context_lens: NDArray[np.int64]
    token_ids: NDArray[np.int64]
    positions: NDArray[np.int64]
    slot_mapping: NDArray[np.int64]
    block_tables: NDArray[np.int64]
    logits_rows: NDArray[np.int64]
    sampling: tuple[Sequence, ...]
    scoring: tuple[Scoring, ...]

    @classmethod
    def build(cls, scheduled: list[Scheduled], block_size: int) -> InputBatch:
        """The batch for a non-empty list of scheduled sequences whose blocks are allocated."""
        decodes = sorted((entry for entry in scheduled if entry.num_tokens == 1), key=_context)
        ordered = [*decodes, *(entry for entry in scheduled if entry.num_tokens > 1)]
        sequences = tuple(entry.sequence for entry in ordered)

        query_lens = np.array([entry.num_tokens for entry in ordered], dtype=np.int64)
        computed = np.array([sequence.num_computed_tokens for sequence in sequences], dtype=np.int64)
        query_start = np.zeros(len(ordered) + 1, dtype=np.int64)
        np.cumsum(query_lens, out=query_start[1:])
        total = int(query_start[-1])

        token_ids = np.empty(total, dtype=np.int64)
        token_ids[: len(decodes)] = [entry.sequence.token_ids[entry.sequence.num_computed_tokens] for entry in decodes]
        for row in range(len(decodes), len(ordered)):
            start = sequences[row].num_computed_tokens
            chunk = sequences[row].token_ids[start : start + ordered[row].num_tokens]
            token_ids[query_start[row] : query_start[row + 1]] = chunk

        row_of_token = np.repeat(np.arange(len(ordered)), query_lens)
        positions = np.arange(total) - query_start[row_of_token] + computed[row_of_token]
        block_tables = np.zeros((len(ordered), max(len(s.block_table) for s in sequences)), dtype=np.int64)
        for row, sequence in enumerate(sequences):
            block_tables[row, : len(sequence.block_table)] = sequence.block_table
        blocks = block_tables[row_of_token, positions // block_size]

        sampling = [row for row, entry in enumerate(ordered) if entry.samples]
        scoring = tuple(_scorings(ordered))
        return cls(
            sequences=sequences,
            num_decodes=len(decodes),
            query_start=query_start,
            context_lens=computed + query_lens,
            token_ids=token_ids,
            positions=positions,
            slot_mapping=blocks * block_size + positions % block_size,
            block_tables=block_tables,
            logits_rows=np.concatenate([query_start[1:][sampling] - 1, *(_rows(query_start, one) for one in scoring)]),
            sampling=tuple(sequences[row] for row in sampling),
            scoring=scoring,
        )


def _context(entry: Scheduled) -> int:
    return entry.sequence.num_computed_tokens


def _scorings(ordered: list[Scheduled]) -> Iterator[Scoring]:
    """What each sequence that wants its prompt scored, and has not had it, gets to know from this step's rows."""
    for row, (sequence, num_tokens) in enumerate(ordered):
        if sequence.scores_prompt:
            computed = sequence.num_computed_tokens
            start = max(computed + 1, sequence.num_scored_tokens)
            end = min(computed + num_tokens + 1, sequence.num_prompt_tokens)
            if start < end:
                yield Scoring(row, sequence, start, end)


def _rows(query_start: NDArray[np.int64], scoring: Scoring) -> NDArray[np.int64]:
    """Which of the T rows hold the logits for the tokens of `scoring`."""
    first = int(query_start[scoring.row]) + scoring.start - 1 - scoring.sequence.num_computed_tokens
    return np.arange(first, first + scoring.end - scoring.start)
