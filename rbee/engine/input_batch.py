"""The arrays of one step, built from what the scheduler chose.

Owns their layout. Does not know what computes with them: all runners read the same batch.
"""

from __future__ import annotations

import array
import itertools
from dataclasses import dataclass
from operator import itemgetter
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from rbee.engine.scheduling.scheduler import Scheduled
    from rbee.engine.scheduling.sequence import Sequence


class LogitsRow(NamedTuple):
    """A row of logits: they predict what follows the token at `position` of `sequence`."""

    sequence: Sequence
    position: int


@dataclass(frozen=True, slots=True)
class InputBatch:
    """T tokens of S sequences, packed without padding.

    Sequences that decode (one token each) come first, those with the shortest context leading; then the chunks of
    several tokens, in the scheduler's order. A chunk of one token is a decode: the arithmetic is the same.

    Attributes:
        num_decodes: how many of the S, from the first on, have exactly one token in this step.
        query_start: int64 [S + 1], where each sequence's tokens start in the T; the last entry is T.
        context_lens: int64 [S], tokens of each sequence in the KV cache once this step is done.
        token_ids: int64 [T].
        positions: int64 [T], each token's index in its sequence.
        slot_mapping: int64 [T], where its keys and values go: block * block_size + offset.
        block_tables: int64 [S, most blocks of any], padded with 0.
        rows: whose logits are wanted. First the rows behind a sequence's last token, which sample; then those behind a
            token of a prompt, which score the next one, grouped by sequence and in order.
        logits_rows: int64 [len(rows)], which of the T tokens each row is computed from.
        num_sampling: how many of the rows sample.
    """

    num_decodes: int
    query_start: NDArray[np.int64]
    context_lens: NDArray[np.int64]
    token_ids: NDArray[np.int64]
    positions: NDArray[np.int64]
    slot_mapping: NDArray[np.int64]
    block_tables: NDArray[np.int64]
    rows: list[LogitsRow]
    logits_rows: NDArray[np.int64]
    num_sampling: int

    @classmethod
    def build(cls, scheduled: list[Scheduled], block_size: int) -> InputBatch:
        """The batch for a non-empty list of scheduled sequences whose blocks are allocated."""
        decodes = sorted((entry for entry in scheduled if entry.num_tokens == 1), key=_context)
        ordered = [*decodes, *(entry for entry in scheduled if entry.num_tokens > 1)]
        # One pass over plain arrays: for a row of one token that is several times cheaper than numpy's calls.
        token_ids, positions, slots = array.array("q"), array.array("q"), array.array("q")
        query_start, context_lens = array.array("q", [0]), array.array("q")
        sampling: list[LogitsRow] = []
        scoring: list[LogitsRow] = []
        sampling_tokens, scoring_tokens = array.array("q"), array.array("q")
        for entry in ordered:
            sequence, num_tokens = entry
            start, table = sequence.num_computed_tokens, sequence.block_table
            end = start + num_tokens
            if num_tokens == 1:
                token_ids.append(sequence.token_ids[start])
                positions.append(start)
                slots.append(table[start // block_size] * block_size + start % block_size)
            else:
                token_ids.extend(sequence.token_ids[start:end].tolist())
                positions.extend(range(start, end))
                slots.extend([table[p // block_size] * block_size + p % block_size for p in range(start, end)])
            query_start.append(len(token_ids))
            context_lens.append(end)
            if entry.samples:
                sampling.append(LogitsRow(sequence, end - 1))
                sampling_tokens.append(len(token_ids) - 1)
            if sequence.scores_prompt:
                first = max(start, sequence.num_scored_tokens - 1)
                last = min(end, sequence.num_prompt_tokens - 1)
                scoring.extend(LogitsRow(sequence, position) for position in range(first, last))
                behind = len(token_ids) - end
                scoring_tokens.extend(range(behind + first, behind + last))

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
            rows=sampling + scoring,
            logits_rows=_numpy(sampling_tokens + scoring_tokens),
            num_sampling=len(sampling),
        )

    def scoring(self) -> Iterator[tuple[Sequence, slice]]:
        """Each sequence whose prompt is scored, and which of the rows are its."""
        first = self.num_sampling
        for sequence, group in itertools.groupby(self.rows[first:], key=itemgetter(0)):
            last = first + len(list(group))
            yield sequence, slice(first, last)
            first = last


def _context(entry: Scheduled) -> int:
    return entry.sequence.num_computed_tokens


def _numpy(numbers: array.array[int]) -> NDArray[np.int64]:
    return np.array(numbers, np.int64)  # of an array it takes the memory whole
