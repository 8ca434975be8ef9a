"""Sequences that wait for a prefix that another one computes."""

from __future__ import annotations

import pytest

from tests.engine.scheduling.scheduling_parts import (
    NO_LIMIT,
    everyone,
    finish_step,
    new_scheduler,
    new_sequence,
    run_all,
    run_step,
)


def test_many_requests_with_one_prompt_compute_it_once():
    """Sixteen requests that come together share the blocks of their prompt, and each computes its own end."""
    scheduler = new_scheduler(200, block_size=4, budget=32, max_num_seqs=16)
    sequences = [new_sequence(number, [5] * 100 + [50 + number, 7], max_tokens=3) for number in range(16)]
    computed = 0
    for sequence in sequences:
        scheduler.add(sequence)
    while everyone(scheduler):
        scheduled = scheduler.schedule(NO_LIMIT)
        computed += sum(num_tokens for _, num_tokens in scheduled)
        finish_step(scheduler, scheduled)
    assert computed == 100 + 16 * (2 + 2), "the prompt once; of each its end, and all but the last of its output"
    assert [sequence.num_cached_tokens for sequence in sequences] == [0, *[100] * 15]
    assert (scheduler.block_manager.prefix_queries, scheduler.block_manager.prefix_hits) == (16 * 102, 15 * 100)


def test_choices_of_one_prompt_wait_for_its_full_blocks_only():
    """A second choice runs as soon as all that it can share is there: its last token it always computes itself."""
    scheduler = new_scheduler(64, block_size=4, budget=8)
    for number in range(2):
        scheduler.add(new_sequence(number, [5] * 16, max_tokens=50))
    assert [run_step(scheduler) for _ in range(3)] == [{0: 8}, {0: 8}, {0: 1, 1: 4}]


def two_with_one_prompt(budget=8):
    """A scheduler with one sequence in the midst of its prompt, and another one held back for it."""
    scheduler = new_scheduler(64, block_size=4, budget=budget)
    producer, follower = new_sequence(0, [5] * 40), new_sequence(1, [5] * 40)
    scheduler.add(producer)
    scheduler.add(follower)
    assert run_step(scheduler) == {0: budget}
    assert scheduler.waiting == [follower]
    return scheduler, producer, follower


@pytest.mark.parametrize("invalid_kv", [False, True])
def test_held_back_sequence_goes_on_when_the_producer_ended(invalid_kv):
    """It takes over where the other stopped, or from the start if that was spoilt."""
    scheduler, producer, follower = two_with_one_prompt()
    scheduler.remove(producer, invalid_kv=invalid_kv)
    assert run_step(scheduler) == {1: 8}
    assert follower.num_cached_tokens == (0 if invalid_kv else 8)


def test_held_back_sequence_goes_on_when_the_producer_is_paused():
    """It does not wait for a slow reader's sequence, and a third one then waits for it."""
    scheduler, producer, follower = two_with_one_prompt()
    scheduler.add(new_sequence(2, [5] * 40))
    producer.paused = True
    assert run_step(scheduler) == {1: 8}
    assert follower.num_cached_tokens == 8
    producer.paused = False
    assert run_step(scheduler) == {0: 4, 1: 4}
    assert [sequence.ring for sequence in scheduler.waiting] == [2]
    scheduler.remove(producer)
    assert run_step(scheduler) == {1: 8}
    assert [sequence.ring for sequence in scheduler.waiting] == [2], "for the second, whatever becomes of the first"


def test_held_back_sequence_goes_on_when_the_producer_is_preempted():
    """Then it is first come, first served again: the producer before the one that waited for it."""
    scheduler = new_scheduler(8, block_size=4, budget=8)
    producer, follower = new_sequence(1, [5] * 24), new_sequence(2, [5] * 24)
    scheduler.add(new_sequence(0, 7, max_tokens=8))
    scheduler.add(producer)
    scheduler.add(follower)
    run_step(scheduler)
    run_step(scheduler)
    assert run_step(scheduler) == {0: 1}
    assert scheduler.waiting == [producer, follower]
    scheduler.remove(producer)
    assert run_all(scheduler, 20)


def test_an_urgent_sequence_does_not_wait_for_a_later_one():
    """It computes what the other computes too, rather than depend on whoever runs before that one."""
    scheduler, _, follower = two_with_one_prompt()
    scheduler.add(new_sequence(2, [5] * 40, priority=-1))
    assert run_step(scheduler) == {2: 8}
    assert scheduler.waiting == [follower], "the later one still waits, now for the urgent one"


def test_those_behind_a_held_back_sequence_may_run():
    """Another prompt does not wait for one that has nothing to do with it."""
    scheduler, *_ = two_with_one_prompt()
    scheduler.add(new_sequence(2, 4))
    assert run_step(scheduler) == {0: 4, 2: 4}


def test_nobody_overtakes_with_the_blocks_that_a_held_back_sequence_needs():
    """Of six blocks the producer has four; the one left over is what the held back one will need besides."""
    scheduler = new_scheduler(6, block_size=4, budget=8)
    scheduler.add(new_sequence(0, [5] * 15, max_tokens=1))
    scheduler.add(new_sequence(1, [5] * 15, max_tokens=1))
    run_step(scheduler)
    scheduler.add(new_sequence(2, 8))
    assert run_step(scheduler) == {0: 7}, "two blocks are free, but one of them is taken"
    assert run_step(scheduler) == {1: 3, 2: 5}


def test_blocks_that_are_coming_are_not_kept_free():
    """A held back sequence will find those of the producer, so one block is all that it keeps from others."""
    scheduler = new_scheduler(7, block_size=4, budget=8)
    for number, prompt in enumerate([[5] * 15, [5] * 15, [9] * 8]):
        scheduler.add(new_sequence(number, prompt))
    assert run_step(scheduler) == {0: 4, 2: 4}


def test_nobody_overtakes_with_the_seat_of_a_held_back_sequence():
    """Of two seats one is the producer's, and the other is kept."""
    scheduler = new_scheduler(64, block_size=4, budget=8, max_num_seqs=2)
    for number, prompt in enumerate([[5] * 40, [5] * 40, [9]]):
        scheduler.add(new_sequence(number, prompt))
    assert run_step(scheduler) == {0: 8}
