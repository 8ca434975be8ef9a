"""The arrays of one step, built from what the scheduler chose.

Owns their layout. Does not know what computes with them: all runners read the same batch.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from rbee.engine.scheduling.scheduler import Scheduled
    from rbee.engine.scheduling.sequence import Sequence


@dataclass(frozen=True, slots=True)
class InputBatch:
    """T tokens of S sequences, packed without padding: R of them whose logits are needed, H whose hidden states are.

    Sequences that decode (one token each) come first, those with the shortest context leading; then the chunks of
    several tokens, in the scheduler's order. A chunk of one token is a decode: the arithmetic is the same. A row of
    logits predicts what follows its token. The rows of last tokens sample; they come before the rows that score the
    next token of a prompt, which are grouped by sequence and in order, as all rows of hidden states are.
    """

    num_decodes: int  # how many of the S, from the first on, have exactly one token in this step
    query_start: NDArray[np.int64]  # int64 [S + 1], where each sequence's tokens start in the T; the last entry is T
    context_lens: NDArray[np.int64]  # int64 [S], tokens of each sequence in the KV cache once this step is done
    token_ids: NDArray[np.int64]  # int64 [T]
    positions: NDArray[np.int64]  # int64 [T], each token's index in its sequence
    slot_mapping: NDArray[np.int64]  # int64 [T], where its keys and values go: block * block_size + offset
    block_tables: NDArray[np.int64]  # int64 [S, most blocks of any], padded with 0
    logits_rows: NDArray[np.int64]  # int64 [R], which of the T they are
    row_sequences: list[Sequence]  # whose each of the R is; `positions[logits_rows]` are their positions
    num_sampling: int  # how many of the R, from the first on, sample
    hidden_rows: NDArray[np.int64] = field(default_factory=lambda: _numpy([]))  # int64 [H], which of the T they are
    hidden_sequences: list[Sequence] = field(default_factory=list)  # whose each of the H is
    pooled: list[Sequence] = field(default_factory=list)  # those whose vector is complete once this step is done

    @classmethod
    def build(cls, scheduled: list[Scheduled], block_size: int) -> InputBatch:
        """The batch for a non-empty list of scheduled sequences whose blocks are allocated."""
        decodes = sorted((entry for entry in scheduled if entry.num_tokens == 1), key=_context)
        ordered = [*decodes, *(entry for entry in scheduled if entry.num_tokens > 1)]
        # One pass over lists: for a row of one token that is several times cheaper than numpy's calls.
        token_ids: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        query_start, context_lens = [0], []
        sampling_rows: list[int] = []
        scoring_rows: list[int] = []
        sampling: list[Sequence] = []
        scoring: list[Sequence] = []
        hidden_rows: list[int] = []
        hidden: list[Sequence] = []
        pooled: list[Sequence] = []
        for entry in ordered:
            sequence, num_tokens = entry
            start, table = sequence.num_computed_tokens, sequence.block_table
            end = start + num_tokens
            if num_tokens == 1:
                token_ids.append(sequence.token_ids[start])
                positions.append(start)
                slots.append(table[start // block_size] * block_size + start % block_size)
            else:
                token_ids.extend(sequence.token_ids[start:end])
                positions.extend(range(start, end))
                slots.extend([table[p // block_size] * block_size + p % block_size for p in range(start, end)])
            query_start.append(len(token_ids))
            context_lens.append(end)
            if sequence.pooling is not None:
                wanted = sequence.pooled_positions(start, end)
                hidden.extend([sequence] * len(wanted))
                hidden_rows.extend([len(token_ids) - end + position for position in wanted])
                if entry.samples:
                    pooled.append(sequence)
            elif entry.samples:
                sampling.append(sequence)
                sampling_rows.append(len(token_ids) - 1)
            if sequence.scores_prompt:
                scored = range(max(start, sequence.num_scored_tokens - 1), min(end, sequence.num_prompt_tokens - 1))
                scoring.extend([sequence] * len(scored))
                scoring_rows.extend([len(token_ids) - end + position for position in scored])

        block_tables = np.zeros((len(ordered), max(len(entry.sequence.block_table) for entry in ordered)), np.int64)
        for row, entry in enumerate(ordered):
            block_tables[row, : len(entry.sequence.block_table)] = entry.sequence.block_table
        return cls(
            num_decodes=len(decodes),
            query_start=_numpy(query_start),
            context_lens=_numpy(context_lens),
            token_ids=_numpy(token_ids),
            positions=_numpy(positions),
            slot_mapping=_numpy(slots),
            block_tables=block_tables,
            logits_rows=_numpy(sampling_rows + scoring_rows),
            row_sequences=sampling + scoring,
            num_sampling=len(sampling),
            hidden_rows=_numpy(hidden_rows),
            hidden_sequences=hidden,
            pooled=pooled,
        )

    def scoring(self) -> Iterator[tuple[Sequence, slice]]:
        """Each sequence whose prompt is scored, and which of the R rows are its."""
        yield from _slices(self.row_sequences[self.num_sampling :], self.num_sampling)

    def pooling(self) -> Iterator[tuple[Sequence, slice]]:
        """Each sequence whose hidden states are needed, and which of the H rows are its."""
        yield from _slices(self.hidden_sequences, 0)


def _slices(sequences: list[Sequence], first: int) -> Iterator[tuple[Sequence, slice]]:
    """The rows of each of these sequences, counted from `first`."""
    for sequence, group in itertools.groupby(sequences):
        last = first + len(list(group))
        yield sequence, slice(first, last)
        first = last


def _context(entry: Scheduled) -> int:
    return entry.sequence.num_computed_tokens


def _numpy(numbers: list[int]) -> NDArray[np.int64]:
    return np.array(numbers, np.int64)
