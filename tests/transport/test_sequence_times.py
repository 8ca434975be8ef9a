"""When a sequence began to run and when its tokens were committed, as the server's side knows it."""

import pytest

from rbee.errors import TransportError
from rbee.messages import SIDE_RECORD, FinishReason
from rbee.transport import TokenGaps

STOP = FinishReason.STOP


def test_times_are_those_of_the_commits(sides):
    """Start, first and last output token and their number, read after the end too; a side record is no token."""
    ring = sides.start()
    assert sides.consumer.times(ring) == (0, 0, 0, 0)
    sides.producer.note_start(ring)
    first = sides.commit([(ring, SIDE_RECORD | 7), (ring, 1)])
    start, *_ = sides.consumer.times(ring)
    assert 0 < start <= first
    sides.consumer.drain()
    assert sides.consumer.times(ring) == (start, first, first, 1)
    last = sides.commit([(ring, 2), (ring, 3)], {ring: STOP})
    assert sides.consumer.times(ring) == (start, first, first, 1), "not drained yet"
    sides.consumer.drain()
    assert sides.consumer.times(ring) == (start, first, last, 3)


def test_times_end_with_the_sequence(sides):
    """The next sequence of the same ring has none of the earlier one's times, before the engine has opened it too."""
    ring = sides.start()
    sides.producer.note_start(ring)
    sides.commit([(ring, 1)], {ring: STOP})
    sides.consumer.drain()
    assert sides.consumer.assign()[0] == ring
    assert sides.consumer.times(ring) == (0, 0, 0, 0)


def test_only_an_open_ring_can_start(sides):
    """The engine cannot write to a ring that belongs to nobody."""
    with pytest.raises(TransportError, match="is not open"):
        sides.producer.note_start(3)
    with pytest.raises(IndexError):
        sides.consumer.times(64)


def test_gaps_of_several_rings(sides):
    """The sequences of a request share one list; what comes before a first token, or after the end, is no gap."""
    gaps = TokenGaps()
    rings = []
    for _ in range(2):
        ring, generation = sides.consumer.assign(gaps=gaps)
        sides.producer.open(ring, generation)
        rings.append(ring)
    one, other = rings
    times = [sides.commit([(one, 1)]), sides.commit([(one, 2), (other, 1)]), sides.commit([(other, 2)], {other: STOP})]
    sides.consumer.drain()
    assert len(gaps) == 2
    wanted = sorted([times[1] - times[0], times[2] - times[1]])
    assert [gaps.quantile(q) for q in (0, 0.5, 0.51, 1)] == [wanted[0], wanted[0], wanted[1], wanted[1]]
    sides.commit([(one, 3), (one, 4)], {one: STOP})
    sides.consumer.drain()
    assert (len(gaps), gaps.quantile(0.25)) == (4, 0), "two tokens of one commit"


def test_without_gaps():
    """No quantile of nothing."""
    assert (len(TokenGaps()), TokenGaps().quantile(0.99)) == (0, 0)
