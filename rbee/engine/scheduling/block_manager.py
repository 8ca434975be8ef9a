"""Which blocks of the paged KV cache are free, which sequence holds which, and which can be found again.

Owns block numbers, their reference counts and the prefix cache: a full block is known by a hash of its tokens and all
before them. Does not know how keys and values are stored, or which sequence deserves a block (`scheduler`).

The life of a block: free -> held, its tokens still being computed (*coming*) -> held and *findable* -> free and still
findable -> evicted, when it is needed for something else. Only full blocks are findable, and those never change.
"""

from __future__ import annotations

from collections import OrderedDict
from hashlib import blake2b
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from rbee.engine.scheduling.sequence import Sequence

_DIGEST_SIZE = 16


class Prefix(NamedTuple):
    """What of a waiting sequence's tokens others have computed, or are computing."""

    blocks: list[int]  # its first blocks, all findable
    num_coming: int  # how many blocks behind these are being computed by running sequences
    producer: Sequence | None  # the sequence that computes the first of those; None if there is none


class BlockManager:
    """Hands out `num_blocks` blocks of `block_size` tokens each. Without `prefix_caching` no block is ever findable.

    With a `window` a token sees so many positions, its own included, in every layer; 0: all before it. A sequence then
    gives up the blocks that none of its later tokens can see. Their places in its table have the number 0.
    """

    def __init__(self, num_blocks: int, block_size: int, *, prefix_caching: bool = True, window: int = 0) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.prefix_caching = prefix_caching
        self.window = window
        self.prefix_queries = 0  # tokens of sequences when they were first admitted
        self.prefix_hits = 0  # how many of those were in the cache
        # The books of the pool; only this class changes them.
        self.num_holders = [0] * num_blocks
        # Free blocks. Unfindable ones are a stack: the one freed last is used first, so that a little used engine
        # touches little memory. The findable ones are in the order of their eviction.
        self.free = list(range(num_blocks - 1, -1, -1))
        self.cached: OrderedDict[int, None] = OrderedDict()
        # Findable blocks by hash, and the reverse; and the sequences that compute blocks to become findable.
        self.findable: dict[bytes, int] = {}
        self.hash_of: list[bytes | None] = [None] * num_blocks
        self.coming: dict[bytes, Sequence] = {}

    @property
    def num_free(self) -> int:
        """Blocks without a holder, findable or not."""
        return len(self.free) + len(self.cached)

    def find(self, sequence: Sequence) -> Prefix:
        """What a waiting sequence can share: all but its last token at most, whose logits are needed."""
        if not self.prefix_caching or sequence.needs_whole_prompt:
            return Prefix([], 0, None)
        limit = (sequence.num_tokens - 1) // self.block_size
        self._extend_hashes(sequence, limit)
        blocks = []
        for block_hash in sequence.block_hashes[:limit]:
            block = self.findable.get(block_hash)
            if block is None:
                break
            blocks.append(block)
        producers = []
        for block_hash in sequence.block_hashes[len(blocks) : limit]:
            producer = self.coming.get(block_hash)
            if producer is None:
                break
            producers.append(producer)
        return Prefix(blocks, len(producers), producers[0] if producers else None)

    def num_needed(self, sequence: Sequence, prefix: Prefix) -> int:
        """Free blocks that it takes to admit a waiting sequence: those of its prefix may be free, or held."""
        num_held = sum(self.num_holders[block] > 0 for block in prefix.blocks)
        return -(-sequence.num_tokens // self.block_size) - num_held

    def admit(self, sequence: Sequence, prefix: Prefix, *, keep_free: int = 0) -> bool:
        """Give a waiting sequence its fresh `find()` and new blocks. False, and none: `keep_free` would not remain."""
        if self.num_needed(sequence, prefix) + keep_free > self.num_free:
            return False
        for block in prefix.blocks:
            if self.num_holders[block] == 0:
                del self.cached[block]
            self.num_holders[block] += 1
        sequence.block_table.extend(prefix.blocks)
        sequence.num_computed_tokens = len(prefix.blocks) * self.block_size
        has_grown = self.grow(sequence)
        assert has_grown, "num_needed was wrong"
        if self.prefix_caching:
            num_full = sequence.num_tokens // self.block_size
            self._extend_hashes(sequence, num_full)
            self.coming.update(dict.fromkeys(sequence.block_hashes[len(prefix.blocks) : num_full], sequence))
        if sequence.num_preemptions == 0:  # else what it finds may be its own
            sequence.num_cached_tokens = sequence.num_computed_tokens
            self.prefix_queries += sequence.num_tokens
            self.prefix_hits += sequence.num_cached_tokens
        self._give_up_unseen(sequence)
        return True

    def grow(self, sequence: Sequence) -> bool:
        """Give `sequence` the blocks that its tokens lack. False, and nothing given, when too few are free."""
        missing = -(-sequence.num_tokens // self.block_size) - len(sequence.block_table)
        if missing <= 0:
            return True
        if missing > self.num_free:
            return False
        for _ in range(missing):
            sequence.block_table.append(self._take())
        return True

    def advance(self, sequence: Sequence, num_tokens: int) -> None:
        """Count the next `num_tokens` of `sequence` as computed; the blocks that this fills become findable."""
        start = sequence.num_computed_tokens // self.block_size
        sequence.num_computed_tokens += num_tokens
        end = sequence.num_computed_tokens // self.block_size
        if start < end and self.prefix_caching:
            self._make_findable(sequence, start, end)
        self._give_up_unseen(sequence)

    def release(self, sequence: Sequence, *, invalid_kv: bool = False) -> None:
        """Take all blocks of `sequence` back; its tokens count as not computed until it finds them again.

        `invalid_kv`: its logits were no finite numbers, and none of its blocks may be found from now on. That includes
        shared ones: which of them are spoilt is not known. Others that computed with spoilt ones end alike.
        """
        for block_hash in sequence.block_hashes[sequence.num_computed_tokens // self.block_size :]:
            if self.coming.get(block_hash) is sequence:
                del self.coming[block_hash]
        for block in reversed(sequence.block_table[sequence.num_unseen_blocks :]):  # so that its last is evicted first
            if invalid_kv:
                self._forget(block)
            self._let_go(block)
        if invalid_kv:
            self._forget_unseen(sequence)
        del sequence.block_table[:]
        sequence.num_computed_tokens = sequence.num_unseen_blocks = 0

    def _make_findable(self, sequence: Sequence, start: int, end: int) -> None:
        """The blocks [start, end) of `sequence` are full."""
        self._extend_hashes(sequence, end)
        for block_hash, block in zip(sequence.block_hashes[start:end], sequence.block_table[start:end], strict=True):
            self.coming.pop(block_hash, None)
            if block_hash not in self.findable:  # else another block holds the same, and this one stays private
                self.findable[block_hash] = block
                self.hash_of[block] = block_hash

    def _give_up_unseen(self, sequence: Sequence) -> None:
        """Let go of the blocks before the window of the next token to compute."""
        if not self.window:
            return
        end = max(0, sequence.num_computed_tokens + 1 - self.window) // self.block_size
        for index in range(sequence.num_unseen_blocks, end):
            self._let_go(sequence.block_table[index])
            sequence.block_table[index] = 0
        sequence.num_unseen_blocks = max(end, sequence.num_unseen_blocks)

    def _forget_unseen(self, sequence: Sequence) -> None:
        """Make what `sequence` has given up, or others with the same tokens have, unfindable."""
        for block_hash in sequence.block_hashes[: sequence.num_unseen_blocks]:
            block = self.findable.get(block_hash)
            if block is not None:
                self._forget(block)
                if not self.num_holders[block]:
                    del self.cached[block]
                    self.free.append(block)

    def _let_go(self, block: int) -> None:
        """It has one holder less."""
        self.num_holders[block] -= 1
        assert self.num_holders[block] >= 0, "a block was released twice"
        if self.num_holders[block]:
            return
        if self.hash_of[block] is None:
            self.free.append(block)
        else:
            self.cached[block] = None

    def _take(self) -> int:
        if self.free:
            block = self.free.pop()
        else:
            block, _ = self.cached.popitem(last=False)
            self._forget(block)
        self.num_holders[block] = 1
        return block

    def _forget(self, block: int) -> None:
        block_hash = self.hash_of[block]
        if block_hash is not None:
            del self.findable[block_hash]
            self.hash_of[block] = None

    def _extend_hashes(self, sequence: Sequence, num_full: int) -> None:
        """Make sure that at least the first `num_full` blocks, which must be full, have their hashes."""
        hashes = sequence.block_hashes
        if len(hashes) >= num_full:
            return
        # `person` keeps a salt from being taken for the content of a block.
        parent = hashes[-1] if hashes else _digest(sequence.cache_salt.encode(), b"cache_salt")
        for start in range(len(hashes) * self.block_size, num_full * self.block_size, self.block_size):
            tokens = sequence.token_ids[start : start + self.block_size]
            parent = _digest(parent + tokens.tobytes(), b"block")
            hashes.append(parent)


def _digest(data: bytes, person: bytes) -> bytes:
    return blake2b(data, digest_size=_DIGEST_SIZE, person=person).digest()
