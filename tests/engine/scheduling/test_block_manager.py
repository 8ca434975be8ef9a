"""Which blocks are found again, by whom, and which of the free ones go first."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from rbee.engine.scheduling.block_manager import BlockManager
from tests.engine.scheduling.scheduling_parts import new_sequence, num_findable

if TYPE_CHECKING:
    from rbee.engine.scheduling.sequence import Sequence

SIZE = 4


def admit(manager: BlockManager, sequence: Sequence) -> list[int]:
    """Admit a sequence, compute all of its tokens; its blocks."""
    assert manager.admit(sequence, manager.find(sequence))
    manager.advance(sequence, sequence.num_uncomputed_tokens)
    return list(sequence.block_table)


def run(manager: BlockManager, sequence: Sequence) -> list[int]:
    """A whole life in one step; the blocks it held."""
    blocks = admit(manager, sequence)
    manager.release(sequence)
    return blocks


@pytest.mark.parametrize(("size", "num_cached"), [(1, 0), (4, 0), (5, 4), (8, 4), (9, 8), (12, 8), (13, 12)], ids=str)
def test_same_prompt_finds_all_full_blocks_but_computes_its_last_token(size, num_cached):
    """A prompt that fills its blocks exactly must compute the last of them again, for the logits."""
    manager = BlockManager(16, SIZE)
    first, again = new_sequence(0, [5] * size), new_sequence(1, [5] * size)
    blocks, shared = admit(manager, first), num_cached // SIZE
    assert manager.admit(again, manager.find(again))
    assert (again.num_computed_tokens, again.num_cached_tokens) == (num_cached, num_cached)
    assert list(again.block_table[:shared]) == blocks[:shared]
    assert not set(again.block_table[shared:]) & set(blocks)
    assert (manager.prefix_queries, manager.prefix_hits) == (2 * size, num_cached)


def test_a_block_counts_only_behind_the_same_beginning():
    """The same tokens at the same place are another block when anything before them differs."""
    manager = BlockManager(16, SIZE)
    run(manager, new_sequence(0, [1, 2, 3, 4, 5, 6, 7, 8, 9]))
    assert manager.find(new_sequence(1, [1, 2, 3, 0, 5, 6, 7, 8, 9])).blocks == []
    assert manager.find(new_sequence(2, [5, 6, 7, 8, 9])).blocks == []
    assert len(manager.find(new_sequence(3, [1, 2, 3, 4, 5, 6, 7, 0, 9])).blocks) == 1


def test_salts_do_not_share():
    """A prompt with another salt, or none, finds nothing; one with the same does."""
    manager = BlockManager(16, SIZE)
    run(manager, new_sequence(0, [5] * 9, salt="mine"))
    assert [len(manager.find(new_sequence(1, [5] * 9, salt=salt)).blocks) for salt in ("", "yours", "mine")] == [
        0,
        0,
        2,
    ]


def test_a_salt_cannot_pass_for_the_content_of_a_block():
    """A salt made of the bytes that another sequence's second block is hashed from does not lead to that block."""
    manager = BlockManager(16, SIZE)
    for number in range(200_000):  # until a hash happens to be text, as a salt must be
        victim = new_sequence(0, [number, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13])
        beginning = new_sequence(0, victim.token_ids[:5])
        manager.find(beginning)  # hashes its one full block
        try:
            salt = (beginning.block_hashes[0] + victim.token_ids[4:8].tobytes()).decode()
            break
        except UnicodeDecodeError:
            continue
    run(manager, victim)
    assert len(manager.find(new_sequence(1, victim.token_ids)).blocks) == 3
    assert manager.find(new_sequence(2, victim.token_ids[8:], salt=salt)).blocks == []


def test_output_is_found_too():
    """A conversation that goes on finds its last answer, except for a token that was sampled but never computed."""
    manager = BlockManager(16, SIZE)
    sequence = new_sequence(0, [1, 2, 3])
    admit(manager, sequence)
    for token in (4, 5, 6, 7):
        sequence.token_ids.append(token)
        assert manager.grow(sequence)
        manager.advance(sequence, 1)
    sequence.token_ids.append(8)
    assert manager.grow(sequence)
    manager.release(sequence)
    assert len(manager.find(new_sequence(1, [1, 2, 3, 4, 5, 6, 7, 8, 9])).blocks) == 1


def test_blocks_become_findable_as_they_are_computed():
    """Until then they are coming, and it is known from whom."""
    manager = BlockManager(16, SIZE)
    first, second = new_sequence(0, [5] * 17), new_sequence(1, [5] * 14)
    assert manager.admit(first, manager.find(first))
    assert manager.find(second) == ([], 3, first)
    manager.advance(first, 7)
    assert manager.find(second) == ([first.block_table[0]], 2, first)
    manager.advance(first, 5)
    assert manager.find(second) == (list(first.block_table[:3]), 0, None)


def test_nothing_comes_from_a_sequence_that_is_gone():
    """Released in the midst of its prompt, it leaves what it computed and promises nothing."""
    manager = BlockManager(16, SIZE)
    first, second = new_sequence(0, [5] * 17), new_sequence(1, [5] * 17)
    assert manager.admit(first, manager.find(first))
    manager.advance(first, 6)
    manager.release(first)
    prefix = manager.find(second)
    assert (len(prefix.blocks), prefix.num_coming, prefix.producer) == (1, 0, None)


def test_the_first_of_two_blocks_with_one_content_is_the_findable_one():
    """A block computed twice is not found under its second number, and that one is free for anything afterwards."""
    manager = BlockManager(4, SIZE)
    first, second = new_sequence(0, [5] * 5), new_sequence(1, [5] * 5)
    prefix = manager.find(first)
    assert manager.admit(first, prefix)
    assert manager.admit(second, prefix)
    manager.advance(first, 5)
    manager.advance(second, 5)
    assert manager.find(new_sequence(2, [5] * 5)).blocks == [first.block_table[0]]
    manager.release(second)
    assert (manager.num_free, num_findable(manager)) == (2, 0)
    manager.release(first)
    assert (manager.num_free, num_findable(manager)) == (4, 1)


def test_a_sequence_whose_prompt_is_scored_computes_all_of_it():
    """It needs the logits of each token; but others find its blocks, and so does it, once the scores are out."""
    manager = BlockManager(16, SIZE)
    run(manager, new_sequence(0, [5] * 9))
    sequence = new_sequence(1, [5] * 9, num_prompt_logprobs=0)
    assert manager.find(sequence) == ([], 0, None)
    sequence.num_scored_tokens = 9
    assert len(manager.find(sequence).blocks) == 2


def test_unfindable_blocks_are_taken_before_findable_ones():
    """What can be found stays for as long as there are others."""
    manager = BlockManager(6, SIZE)
    cached = run(manager, new_sequence(0, 9))[:2]
    assert (manager.num_free, num_findable(manager)) == (6, 2)
    other = new_sequence(1, 16)
    assert not set(admit(manager, other)) & set(cached)
    assert (manager.num_free, num_findable(manager)) == (2, 2)


def test_least_recently_used_is_evicted_first_and_the_end_before_the_beginning():
    """Of two prompts the one not used for longer goes, from its last block on."""
    manager = BlockManager(8, SIZE)
    prompts = [[number] * 13 for number in (1, 2)]
    for number, prompt in enumerate(prompts):
        run(manager, new_sequence(number, prompt))
    run(manager, new_sequence(2, prompts[0]))  # used again
    assert num_findable(manager) == 6
    found = []
    hog = new_sequence(3, 8)
    assert manager.admit(hog, manager.find(hog))  # the two unfindable ones
    for _ in range(6):
        hog.token_ids.extend([0] * SIZE)
        assert manager.grow(hog)
        found.append([len(manager.find(new_sequence(4, prompt)).blocks) for prompt in prompts])
    assert found == [[3, 2], [3, 1], [3, 0], [2, 0], [1, 0], [0, 0]]
    hog.token_ids.append(0)
    assert not manager.grow(hog), "nothing is left"


def test_a_shared_block_is_free_only_when_its_last_holder_is_gone():
    """It stays held, and cannot be evicted, while anybody reads it."""
    manager = BlockManager(6, SIZE)
    first, second = new_sequence(0, [5] * 9), new_sequence(1, [5] * 9)
    admit(manager, first)
    admit(manager, second)
    assert manager.num_free == 2
    manager.release(first)
    assert (manager.num_free, num_findable(manager)) == (3, 0)
    manager.release(second)
    assert (manager.num_free, num_findable(manager)) == (6, 2)


def test_admission_counts_cached_blocks_that_leave_the_free_ones():
    """A prefix that nobody holds takes free blocks as new ones do; one that is held does not; none is given in part."""
    manager = BlockManager(4, SIZE)
    run(manager, new_sequence(0, [5] * 9))
    hog = new_sequence(1, 8)
    admit(manager, hog)
    again = new_sequence(2, [5] * 9)
    prefix = manager.find(again)
    assert (manager.num_free, manager.num_needed(again, prefix)) == (2, 3)
    assert not manager.admit(again, prefix)
    assert (again.num_computed_tokens, len(again.block_table), num_findable(manager)) == (0, 0, 2)
    manager.release(hog)
    admit(manager, again)
    third = new_sequence(3, [5] * 9)
    assert manager.num_needed(third, manager.find(third)) == 1
    assert not manager.admit(third, manager.find(third), keep_free=1)
    assert manager.admit(third, manager.find(third))


def test_nothing_of_a_invalid_kv_sequence_is_found():
    """Neither what it computed nor what it shared, whether others still hold that or not."""
    manager = BlockManager(16, SIZE)
    first, second = new_sequence(0, [5] * 8 + [1]), new_sequence(1, [5] * 12 + [2])
    admit(manager, first)
    admit(manager, second)
    manager.release(second, invalid_kv=True)
    assert manager.find(new_sequence(2, [5] * 13)).blocks == []
    assert num_findable(manager) == 0
    manager.release(first)
    assert (manager.num_free, num_findable(manager)) == (16, 0)
    run(manager, new_sequence(3, [5] * 13))
    assert len(manager.find(new_sequence(4, [5] * 13)).blocks) == 3, "computed anew"


def test_hashes_are_computed_once():
    """They stay with the sequence, over a preemption too, and are extended by what it fills."""
    manager = BlockManager(16, SIZE)
    sequence = new_sequence(0, [5] * 9)
    admit(manager, sequence)
    hashes = list(sequence.block_hashes)
    manager.release(sequence)
    sequence.num_preemptions += 1
    sequence.token_ids.extend([5] * 3)
    admit(manager, sequence)
    assert all(kept is old for kept, old in zip(sequence.block_hashes, hashes, strict=False))
    assert (len(hashes), len(sequence.block_hashes)) == (2, 3)
    assert sequence.num_cached_tokens == 0, "it found its own"
    assert (manager.prefix_queries, manager.prefix_hits) == (9, 0)


def test_without_prefix_caching_nothing_is_hashed_or_found():
    """Switched off, blocks are only held and free."""
    manager = BlockManager(16, SIZE, prefix_caching=False)
    sequence = new_sequence(0, [5] * 9)
    admit(manager, sequence)
    again = new_sequence(1, [5] * 9)
    assert manager.find(again) == ([], 0, None)
    manager.release(sequence)
    assert (sequence.block_hashes, num_findable(manager), manager.num_free) == ([], 0, 16)
    assert manager.prefix_hits == 0


def test_a_block_released_twice_is_noticed():
    """It would be given to two sequences."""
    manager = BlockManager(4, SIZE)
    sequence = new_sequence(0, 5)
    admit(manager, sequence)
    blocks = sequence.block_table[:]
    manager.release(sequence)
    sequence.block_table.extend(blocks)
    with pytest.raises(AssertionError, match="twice"):
        manager.release(sequence)
