"""Sequences that the server holds, because nobody reads their tokens for now."""

from __future__ import annotations

import pytest

from rbee.messages import FinishReason
from rbee.models.synthetic import expected_tokens
from tests.engine.engine_parts import InProcessEngine, synthetic


@pytest.mark.parametrize("steps", [0, 3], ids=["before its first step", "in decode"])
def test_held_sequence_computes_nothing_until_it_is_released(steps):
    """It pauses at once, however much room its ring has; its neighbour goes on; it then gets every token."""
    with InProcessEngine(synthetic()) as engine:
        held = engine.submit([1], max_tokens=30)
        for _ in range(steps):
            assert engine.core.step()
        engine.core.hold(held.ring)
        fast = engine.submit([2], max_tokens=30)
        engine.run()
        assert (held.tokens, held.finish) == (expected_tokens([1], steps), None)
        assert fast.tokens == expected_tokens([2], 30)
        assert not engine.core.step(), "there is nothing else to do"
        engine.core.release(held.ring)
        engine.run()
        assert (held.tokens, held.finish) == (expected_tokens([1], 30), FinishReason.LENGTH)
        engine.assert_at_baseline()


def test_held_sequence_gives_its_blocks_to_others():
    """A sequence that nobody waits for keeps its blocks only as long as no other needs them."""
    with InProcessEngine(synthetic(), num_blocks=2) as engine:
        held = engine.submit([1], max_tokens=20)
        for _ in range(17):
            assert engine.core.step()
        engine.core.hold(held.ring)
        other = engine.submit([2], max_tokens=20)
        engine.run()
        assert other.tokens == expected_tokens([2], 20)
        engine.core.release(held.ring)
        engine.run()
        assert held.tokens == expected_tokens([1], 20)
        engine.assert_at_baseline()


def test_hold_is_no_slowness():
    """However long it is held, with a full ring too; once released, its reader has the whole time of a slow one."""
    with InProcessEngine(synthetic(), ring_capacity=8, slow_reader_timeout=1.0) as engine:
        held = engine.submit([1], max_tokens=30)
        while engine.core.step():
            pass
        engine.core.hold(held.ring)
        engine.now_ns += 10**10
        assert not engine.core.step()
        engine.core.release(held.ring)
        engine.now_ns += 999_999_999
        assert not engine.core.step()
        engine.now_ns += 1
        assert engine.core.step()
        engine.run()
        assert (held.tokens, held.finish) == (expected_tokens([1], 8), FinishReason.SLOW_READER)


def test_held_sequence_can_be_cancelled():
    """And leaves nothing behind."""
    with InProcessEngine(synthetic()) as engine:
        held = engine.submit([1], max_tokens=30)
        engine.core.hold(held.ring)
        assert not engine.core.step()
        engine.rings.consumer.cancel(held.ring)
        engine.run()
        assert (held.tokens, held.finish) == ([], FinishReason.ABORT)
        engine.assert_at_baseline()


def test_hold_that_comes_too_late_is_not_for_the_next_sequence_of_the_ring():
    """The server holds a sequence that has just ended; the next one on its ring runs."""
    with InProcessEngine(synthetic()) as engine:
        first = engine.submit([1], max_tokens=1)
        assert engine.core.step()
        engine.core.hold(first.ring)
        engine.rings.drain()
        rings = set()
        while first.ring not in rings:
            again = engine.submit([2], max_tokens=2)
            rings.add(again.ring)
            engine.run()
            assert again.tokens == expected_tokens([2], 2)
