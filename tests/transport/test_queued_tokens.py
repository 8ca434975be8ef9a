"""The tokens of prompts that have not begun: a count that is exact after whatever may happen to their rings."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from tests.transport.conftest import Sides


@dataclass
class Sequence:
    """What the model knows of a ring."""

    tokens: int
    begun: bool = False
    paused: bool = False
    cancelled: bool = False
    published: int = 0  # records that were not drained
    ended: bool = False


EVENTS = st.one_of(
    st.tuples(st.just("assign"), st.integers(0, 2**40)),
    *[st.tuples(st.just(event), st.integers(0, 7)) for event in ("token", "finish", "cancel", "pause", "resume")],
    st.tuples(st.just("drain"), st.integers(1, 12)),
)


@given(st.lists(EVENTS, max_size=60))
def test_count_is_that_of_the_rings_without_a_sign_of_the_engine(events):
    """After each drain it is the sum over the rings that the engine has published nothing for; after a death it is 0.

    What a small drain has no room for may begin later, or at once.
    """
    sides = Sides(4, 0)
    rings: dict[int, Sequence] = {}
    try:
        for event, value in events:
            if event == "assign":
                assigned = sides.consumer.assign(0, value)
                assert assigned is not None
                ring, generation = assigned
                sides.producer.open(ring, generation)
                rings[ring] = Sequence(value)
            elif event == "drain":
                take(sides, rings, value)
            elif (sequence := rings.get(value)) is not None:
                happen(sides, event, value, sequence)
            assert sides.consumer.queued_tokens == sum(s.tokens for s in rings.values() if not s.begun)
            assert all(sides.consumer.has_begun(ring) == s.begun for ring, s in rings.items())
        for ring, sequence in rings.items():
            if not sequence.ended:
                sides.commit([], {ring: 1})
        sides.consumer.expect_all()
        while sides.consumer.drain().more:
            pass
        assert (sides.consumer.queued_tokens, sides.consumer.in_use) == (0, 0)
    finally:
        sides.close()


def happen(sides, event, ring, sequence):
    """One event of a ring."""
    if event == "token" and not sequence.ended and sequence.published < 4:
        sides.commit([(ring, 1)])
        sequence.published += 1
    elif event == "finish" and not sequence.ended:
        sides.commit([], {ring: 1})
        sequence.ended = True
    elif event == "cancel":
        sides.consumer.cancel(ring)
        sequence.begun = sequence.cancelled = True
    elif event == "pause":
        sides.consumer.pause(ring)
        sequence.paused = True
    elif event == "resume":
        sides.consumer.resume(ring)
        sequence.paused = False


def take(sides, rings, budget):
    """Drain everything, in drains of this size."""
    while True:
        drained = sides.consumer.drain(budget)
        for ring, finish in zip(drained.rings, drained.finishes, strict=True):
            assert not rings[ring].paused
            if finish:
                del rings[ring]
            else:
                rings[ring].begun = True
                rings[ring].published = 0
        if not drained.more:
            break
    for sequence in rings.values():
        if sequence.published or sequence.ended:
            assert sequence.paused
            sequence.begun = True
