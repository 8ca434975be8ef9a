"""What Producer and Consumer promise to Python, call by call; the core's own tests are in native/tests."""

from __future__ import annotations

import struct
import time

import numpy as np
import pytest

from rbee.errors import TransportError

NO_RINGS, NO_REASONS = np.zeros(0, np.uint32), np.zeros(0, np.uint32)


def test_drain_returns_flat_lists_of_python_numbers(sides):
    """Tokens of several rings come grouped by ring, with their commit times on Python's own monotonic clock."""
    a, b = sides.start(), sides.start()
    before = time.monotonic_ns()
    first = sides.commit([(a, 10), (b, 20), (a, 11)])
    second = sides.commit([(b, 21)], {b: 2})
    assert before <= first <= second <= time.monotonic_ns()
    drained = sides.consumer.drain()
    assert drained == (
        [a, b],
        [2, 4],
        [0, 2],
        [10, 11, 20, 21],
        [first, first, first, second],
        drained[5],
        False,
        False,
        [],
        [],
        [],
    )
    assert drained.rings is drained[0]
    assert drained.needs_wake is drained[7]
    assert drained.logprobs == pytest.approx([-0.010, -0.011, -0.020, -0.021])
    assert sides.consumer.drain() == ([], [], [], [], [], [], False, False, [], [], [])


def test_numbers_keep_their_full_range(sides):
    """The largest token id and a logprob of -inf come out as they went in."""
    ring = sides.start()
    rings = np.array([ring], np.uint32)
    sides.producer.commit(
        rings, np.array([2**32 - 1], np.uint32), np.array([-np.inf], np.float32), NO_RINGS, NO_REASONS
    )
    drained = sides.consumer.drain()
    assert (drained.tokens, drained.logprobs) == ([2**32 - 1], [float("-inf")])


@pytest.mark.parametrize(
    ("rings", "tokens", "logprobs"),
    [
        (np.zeros(1, np.int64), np.zeros(1, np.uint32), np.zeros(1, np.float32)),
        (np.zeros(1, np.uint32), np.zeros(1, np.uint32), np.zeros(1, np.float64)),
        (np.zeros((1, 1), np.uint32), np.zeros(1, np.uint32), np.zeros(1, np.float32)),
        (np.zeros(1, np.uint32), np.zeros(4, np.uint32)[::4], np.zeros(8, np.float32)[::8][:1].reshape(1, 1)),
        ([0], [0], [0.0]),
    ],
)
def test_commit_refuses_arrays_of_another_type(sides, rings, tokens, logprobs):
    """No silent conversion or copy on the engine's hot path."""
    sides.start()
    with pytest.raises(TypeError):
        sides.producer.commit(rings, tokens, logprobs, NO_RINGS, NO_REASONS)
    assert sides.consumer.drain().rings == []


def test_commit_refuses_columns_of_different_lengths(sides):
    """A column that is shorter than the others would be read beyond its end."""
    ring = sides.start()
    two, one = np.full(2, ring, np.uint32), np.zeros(1, np.uint32)
    with pytest.raises(ValueError, match="one entry per token"):
        sides.producer.commit(two, one, np.zeros(2, np.float32), NO_RINGS, NO_REASONS)
    with pytest.raises(ValueError, match="one entry per token"):
        sides.producer.commit(two, two, np.zeros(1, np.float32), NO_RINGS, NO_REASONS)
    with pytest.raises(ValueError, match="one entry per finished ring"):
        sides.producer.commit(NO_RINGS, NO_RINGS, np.zeros(0, np.float32), two, np.ones(1, np.uint32))
    assert sides.consumer.drain().rings == []


def test_errors_name_the_ring_and_the_remedy(sides):
    """Misuse is a sentence with the ring's number, whichever side notices it."""
    ring = sides.start()
    with pytest.raises(TransportError, match=r"Ring 7 is not open; open\(\) it"):
        sides.commit([(7, 1)])
    with pytest.raises(TransportError, match=rf"Ring {ring} is full; ask free_space\(\)"):
        sides.commit([(ring, token) for token in range(9)])
    with pytest.raises(ValueError, match="ring is 64 but the arena has 64 rings"):
        sides.producer.free_space(64)
    with pytest.raises(ValueError, match="Ring 9 is not assigned"):
        sides.consumer.cancel(9)
    with pytest.raises(TypeError):
        sides.consumer.pause(-1)


def test_corrupt_index_is_an_error_of_the_transport(sides):
    """A tail scribbled over by the engine makes drain() raise; nothing outside the ring is ever returned as a token."""
    ring = sides.start()
    sides.commit([(ring, 1)])
    [tails] = struct.unpack_from("<Q", sides.created.buffer, 40)  # of the geometry, in the header
    sides.created.buffer[tails + 4 * ring : tails + 4 * ring + 4] = b"\xff\x00\x00\x00"
    with pytest.raises(TransportError, match=f"Corrupt ring {ring}"):
        sides.consumer.drain()


def test_all_rings_can_be_in_use(sides):
    """The 65th request of 64 rings gets none, and a ring handed back is the next one given."""
    rings = [sides.consumer.assign()[0] for _ in range(64)]
    assert sorted(rings) == list(range(64))
    assert sides.consumer.assign() is None
    sides.producer.open(5, 1)
    sides.commit([], {5: 1})
    assert sides.consumer.drain().rings == [5]
    assert sides.consumer.in_use == 63
    assert sides.consumer.assign() == (5, 2)


def test_counters_tell_both_sides_stories(sides):
    """What was published, drained and rung for can be read by name in the server."""
    ring = sides.start()
    sides.producer.beat(3)
    sides.consumer.beat(1)
    sides.commit([(ring, 1), (ring, 2)])
    sides.commit([(ring, 3)], {ring: 1})
    sides.consumer.drain()
    counters = sides.consumer.counters()
    assert {name: counters[name] for name in ("steps", "tokens", "wakes_written", "wakes_elided", "drains")} == {
        "steps": 2, "tokens": 3, "wakes_written": 1, "wakes_elided": 1, "drains": 1,
    }  # fmt: skip
    assert (counters["tokens_drained"], counters["finishes"], counters["stale_wakeups"]) == (3, 1, 0)
    assert (counters["engine_state"], counters["server_state"]) == (3, 1)
    assert 0 < counters["engine_heartbeat_ns"] <= counters["server_heartbeat_ns"] <= time.monotonic_ns()


def test_notes_travel_but_are_not_counted_as_tokens(sides):
    """A record with the note bit arrives as it was written; the engine's count of tokens leaves it out."""
    ring = sides.start()
    note = 1 << 31 | 7
    sides.commit([(ring, 5), (ring, note), (ring, note), (ring, 6)])
    drained = sides.consumer.drain()
    assert drained.tokens == [5, note, note, 6]
    assert sides.consumer.counters()["tokens"] == 2


def test_finish_carries_a_number_beside_its_reason(sides):
    """All 24 bits above the reason arrive; a finish without a reason is refused whole."""
    ring = sides.start()
    sides.commit([(ring, 5)], {ring: 2 | 0xFFFFFF << 8})
    assert sides.consumer.drain().finishes == [2 | 0xFFFFFF << 8]
    ring = sides.start()
    with pytest.raises(ValueError, match="reason 0"):
        sides.commit([(ring, 5)], {ring: 7 << 8})
    assert sides.consumer.drain().rings == []
