"""Sequences and schedulers without a model, and a KV cache that remembers what was written to it."""

from __future__ import annotations

import array
import zlib
from typing import TYPE_CHECKING

from rbee.engine.scheduling.block_manager import BlockManager
from rbee.engine.scheduling.scheduler import Scheduled, Scheduler
from rbee.engine.scheduling.sequence import Sequence
from rbee.sampling_params import SamplingParams

if TYPE_CHECKING:
    from collections.abc import Iterable

NO_LIMIT = 1 << 30
"""For `max_prompt_tokens`."""


def new_sequence(
    number: int,
    prompt: int | Iterable[int],
    *,
    max_tokens: int = 4,
    salt: str = "",
    priority: int = 0,
    num_prompt_logprobs: int | None = None,
) -> Sequence:
    """A sequence that came `number`th. A prompt given as a length shares no block with that of another number.

    A priority of 1 lets ten later ones overtake it.
    """
    tokens = [1000 * (number + 1) + offset for offset in range(prompt)] if isinstance(prompt, int) else prompt
    return Sequence(
        request_id=str(number),
        ring=number,
        rank=(number + 10 * priority, number),
        token_ids=array.array("I", tokens),
        sampling=SamplingParams(max_tokens=max_tokens, num_prompt_logprobs=num_prompt_logprobs),
        cache_salt=salt,
    )


def new_scheduler(
    num_blocks: int,
    *,
    block_size: int = 4,
    max_num_seqs: int = 8,
    budget: int = 16,
    max_model_len: int | None = None,
    prefix_caching: bool = True,
    window: int = 0,
) -> Scheduler:
    """A scheduler over a pool of blocks; by default one sequence may take it all."""
    return Scheduler(
        BlockManager(num_blocks, block_size, prefix_caching=prefix_caching, window=window),
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=budget,
        max_model_len=max_model_len or num_blocks * block_size,
    )


def everyone(scheduler: Scheduler) -> list[Sequence]:
    """All sequences of a scheduler."""
    return scheduler.running + scheduler.waiting


def num_findable(manager: BlockManager) -> int:
    """Blocks that no sequence holds, but that can still be found."""
    return len(manager.cached)


def content(sequence: Sequence, position: int) -> bytes:
    """What the keys and values of a token are a function of: the tokens up to it. The salt must not be shared over."""
    return sequence.cache_salt.encode() + b"|" + sequence.token_ids[: position + 1].tobytes()


def next_token(sequence: Sequence) -> int:
    """A greedy model's answer: one of three tokens, a function of all before."""
    return zlib.crc32(content(sequence, sequence.num_tokens)) % 3


class KvCache:
    """For each slot, the content last written to it."""

    def __init__(self, manager: BlockManager) -> None:
        self._manager = manager
        self._slots: dict[int, bytes] = {}

    def compute(self, scheduled: list[Scheduled]) -> None:
        """Run the scheduled tokens: each writes its slot, which must be nobody else's, and reads all that it sees."""
        for sequence, num_tokens in scheduled:
            start = sequence.num_computed_tokens
            for position in range(start, start + num_tokens):
                block = sequence.block_table[position // self._manager.block_size]
                assert self._manager.num_holders[block] == 1, "a shared block is written to"
                assert self._manager.hash_of[block] is None, "a findable block is written to"
                self._slots[self._slot(sequence, position)] = content(sequence, position)
        for sequence, num_tokens in scheduled:
            self._check(sequence, self._first_seen(sequence), sequence.num_computed_tokens + num_tokens)

    def check(self, running: list[Sequence]) -> None:
        """All that counts as computed or can be found is really there, and the pool adds up."""
        manager = self._manager
        holders = [0] * manager.num_blocks
        for sequence in running:
            self._check(sequence, self._first_seen(sequence), sequence.num_computed_tokens)
            assert sequence.num_unseen_blocks == self._first_seen(sequence) // manager.block_size
            for index, block in list(enumerate(sequence.block_table))[sequence.num_unseen_blocks :]:
                holders[block] += 1
                is_full = (index + 1) * manager.block_size <= sequence.num_computed_tokens
                assert is_full or manager.num_holders[block] == 1, "a shared block is not computed"
        assert holders == manager.num_holders
        held = {block for block in range(manager.num_blocks) if holders[block]}
        assert sorted([*held, *manager.free, *manager.cached]) == list(range(manager.num_blocks))
        assert manager.num_free == manager.num_blocks - len(held)
        assert all(manager.hash_of[block] is None for block in manager.free)
        assert all(manager.hash_of[block] is not None for block in manager.cached)
        assert {block: digest for digest, block in manager.findable.items()} == {
            block: digest for block, digest in enumerate(manager.hash_of) if digest is not None
        }
        assert all(producer in running for producer in manager.coming.values())
        self._check_findable()

    def _check_findable(self) -> None:
        """A sequence with the tokens of a findable block would find this block, and right ones before it."""
        size = self._manager.block_size
        for block_hash, block in self._manager.findable.items():
            salt, _, tokens = self._slots[block * size + size - 1].partition(b"|")
            probe = new_sequence(0, [*memoryview(tokens).cast("I"), 0], salt=salt.decode())
            found = self._manager.find(probe).blocks
            assert probe.block_hashes[-1] == block_hash
            assert len(probe.block_hashes) * size == probe.num_tokens - 1
            for index, cached in enumerate([*found, block]):
                last = index if index < len(found) else len(probe.block_hashes) - 1
                for offset in range(size):
                    assert self._slots[cached * size + offset] == content(probe, last * size + offset)

    def _first_seen(self, sequence: Sequence) -> int:
        """The first position that a token which is yet to be computed sees."""
        window = self._manager.window
        return max(0, sequence.num_computed_tokens + 1 - window) if window else 0

    def _check(self, sequence: Sequence, start: int, end: int) -> None:
        for position in range(start, end):
            assert self._slots[self._slot(sequence, position)] == content(sequence, position)

    def _slot(self, sequence: Sequence, position: int) -> int:
        index, offset = divmod(position, self._manager.block_size)
        return sequence.block_table[index] * self._manager.block_size + offset


def finish_step(scheduler: Scheduler, scheduled: list[Scheduled]) -> list[Sequence]:
    """What the core does after a step: append a token where one was sampled, remove what is done; the removed."""
    samplers = [entry.sequence for entry in scheduled if entry.samples]
    scheduler.update(scheduled)
    done = []
    for sequence in samplers:
        sequence.num_scored_tokens = sequence.num_prompt_tokens
        sequence.token_ids.append(next_token(sequence))
        if sequence.num_output_tokens == sequence.sampling.max_tokens:
            scheduler.remove(sequence)
            done.append(sequence)
    return done


def run_step(scheduler: Scheduler, max_prompt_tokens: int = NO_LIMIT) -> dict[int, int]:
    """One whole step: how many tokens it computed of whom, by number, in the order of the schedule."""
    scheduled = scheduler.schedule(max_prompt_tokens)
    numbers = {entry.sequence.ring: entry.num_tokens for entry in scheduled}
    finish_step(scheduler, scheduled)
    return numbers


def run_all(scheduler: Scheduler, max_steps: int) -> int:
    """Run until all have ended; the number of steps, of which there must not be more than `max_steps`."""
    for step in range(max_steps):
        if not everyone(scheduler):
            return step
        assert run_step(scheduler), "somebody could run"
    raise AssertionError(f"{everyone(scheduler)} did not end in {max_steps} steps.")
