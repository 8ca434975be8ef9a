"""The arrays of one step, built from what the scheduler chose and dropped when the step is over.

Owns their layout. Does not know what computes with them: both runners read the same batch.
"""

from __future__ import annotations

import array
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from rbee.engine.scheduling.scheduler import Scheduled
    from rbee.engine.scheduling.sequence import Sequence


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
        # In one pass over plain arrays: for a row of one token that is several times cheaper than numpy's calls.
        token_ids, positions, slots = array.array("q"), array.array("q"), array.array("q")
        query_start, context_lens = array.array("q", [0]), array.array("q")
        sampling_rows, scoring = array.array("q"), []
        sampling = []
        for row, entry in enumerate(ordered):
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
                sampling.append(sequence)
                sampling_rows.append(len(token_ids) - 1)
            if sequence.scores_prompt and (scored := _scoring(row, entry)).start < scored.end:
                scoring.append(scored)
        scoring_rows = array.array("q")
        for one in scoring:
            first = query_start[one.row] + one.start - 1 - one.sequence.num_computed_tokens
            scoring_rows.extend(range(first, first + one.end - one.start))

        block_tables = np.zeros((len(ordered), max(len(entry.sequence.block_table) for entry in ordered)), np.int64)
        for row, entry in enumerate(ordered):
            block_tables[row, : len(entry.sequence.block_table)] = entry.sequence.block_table
        return cls(
            sequences=tuple(entry.sequence for entry in ordered),
            num_decodes=len(decodes),
            query_start=_numpy(query_start),
            context_lens=_numpy(context_lens),
            token_ids=_numpy(token_ids),
            positions=_numpy(positions),
            slot_mapping=_numpy(slots),
            block_tables=block_tables,
            logits_rows=_numpy(sampling_rows + scoring_rows),
            sampling=tuple(sampling),
            scoring=tuple(scoring),
        )


def _context(entry: Scheduled) -> int:
    return entry.sequence.num_computed_tokens


def _numpy(numbers: array.array[int]) -> NDArray[np.int64]:
    return np.array(numbers, np.int64)  # of an array it takes the memory whole


def _scoring(row: int, entry: Scheduled) -> Scoring:
    """What a sequence that wants its prompt scored gets to know from this step's rows, less what it has had."""
    sequence, computed = entry.sequence, entry.sequence.num_computed_tokens
    start = max(computed + 1, sequence.num_scored_tokens)
    return Scoring(row, sequence, start, min(computed + entry.num_tokens + 1, sequence.num_prompt_tokens))
