"""Which blocks of the paged KV cache are free, and which sequence holds which.

Owns block numbers. Does not know what a block stores (`kv_cache`) or who deserves one (`scheduler`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rbee.engine.sequence import Sequence


class BlockManager:
    """Hands out `num_blocks` blocks of `block_size` tokens each; a block belongs to at most one sequence."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        # A stack: the block freed last is used first, so a lightly loaded engine touches little memory.
        self._free = list(range(num_blocks - 1, -1, -1))

    @property
    def num_free(self) -> int:
        """Blocks that nobody holds."""
        return len(self._free)

    def num_missing(self, sequence: Sequence) -> int:
        """Blocks that `sequence` lacks to hold all of its tokens."""
        needed = -(-sequence.num_tokens // self.block_size)
        return max(0, needed - len(sequence.block_table))

    def grow(self, sequence: Sequence) -> bool:
        """Give `sequence` the blocks it lacks. False, and nothing given, when there are too few free ones."""
        missing = self.num_missing(sequence)
        if missing > len(self._free):
            return False
        for _ in range(missing):
            sequence.block_table.append(self._free.pop())
        return True

    def release(self, sequence: Sequence) -> None:
        """Take all blocks of `sequence` back; what they hold is lost, so its tokens count as not computed."""
        self._free.extend(reversed(sequence.block_table))
        del sequence.block_table[:]
        sequence.num_computed_tokens = 0
        assert len(self._free) <= self.num_blocks, "a block was released twice"
