"""How long a cancel takes to free its ring, as the server's side counts it."""

from __future__ import annotations

import time

from rbee.transport import _native  # noqa: TID251 - what the arena holds
from tests.transport.delivery_parts import STOP

BOUNDS = _native.histogram_bounds()


def counted(sides) -> list[int]:
    """The start of the bucket of each time, in ns."""
    *_, histograms = _native.observe(sides.created.buffer.toreadonly())
    return [start for start, count in zip(BOUNDS, histograms["cancel_to_free"], strict=True) for _ in range(count)]


def test_time_from_cancel_to_free_ring(sides):
    """Between the first cancel and the drain that finds the finish, which gives the ring back."""
    ring = sides.start()
    before = time.monotonic_ns()
    sides.consumer.cancel(ring)
    after = time.monotonic_ns()
    sides.commit([(ring, 1)])
    sides.consumer.drain()
    assert counted(sides) == [], "the ring is not free yet"
    while time.monotonic_ns() - after < 10_000_000:  # much longer than what follows: it matters which cancel counts
        pass
    sides.consumer.cancel(ring)
    sides.commit([], {ring: STOP})
    at_least = time.monotonic_ns() - after
    assert sides.consumer.in_use == 1
    sides.consumer.drain()
    at_most = time.monotonic_ns() - before
    assert sides.consumer.in_use == 0
    [start] = counted(sides)
    assert at_least * 15 / 16 - 1 <= start <= at_most


def test_only_what_was_cancelled_is_timed(sides):
    """Neither a ring that ends by itself, nor the next request of a ring that was cancelled."""
    for cancelled in (False, True, False):
        ring = sides.start()
        if cancelled:
            sides.consumer.cancel(ring)
        sides.commit([(ring, 1)], {ring: STOP})
        sides.consumer.drain()
    assert len(counted(sides)) == 1
