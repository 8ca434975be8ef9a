"""Sequences without a client: the engine holds them, and they make room before anybody is refused."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from rbee.messages import FinishReason, Hold, Release, Wake
from rbee.server.errors import Refusal
from rbee.server.link.admission import Admission, Requester
from tests.server.link.link_parts import DIED, RINGS, running_engine, until

if TYPE_CHECKING:
    from tests.server.link.link_parts import Engine

pytestmark = pytest.mark.anyio


def end_cancelled(engine: Engine) -> list[int]:
    """The engine's next step: the rings of all cancelled sequences end."""
    rings = engine.producer.take_cancelled()
    engine.commit([], [(ring, FinishReason.ABORT) for ring in rings])
    return rings


def codes(sink) -> list[object]:
    """How a sequence ended: the codes of its refusals, or its reasons."""
    return [end.code if isinstance(end, Refusal) else end for end in sink.ends]


async def test_orphan_is_held_until_it_is_adopted(engine: Engine) -> None:
    """The engine is told once each, and nothing is delivered meanwhile."""
    sequence, ring, sink = engine.submit()
    sequence.adopt()
    for _ in range(2):
        sequence.orphan()
    engine.commit([(ring, 1)])
    await asyncio.sleep(0)
    sequence.adopt()
    sequence.adopt()
    assert engine.sent == [Hold(ring=ring), Release(ring=ring)]
    assert sink.token_ids == []
    sequence.resume()
    await until(lambda: sink.token_ids == [1])


async def test_nobody_is_given_up_while_there_is_room(engine: Engine) -> None:
    """Nor anybody who has a client, when there is none."""
    sequence, _, sink = engine.submit()
    sequence.orphan()
    await engine.client.make_room(RINGS - 1, 3)
    assert sink.ends == []
    sequence.adopt()
    await engine.client.make_room(RINGS, 3)
    assert sink.ends == []


async def test_oldest_orphans_make_room(engine: Engine) -> None:
    """As many as are needed, when their rings are free; each is told why it ended."""
    requests = [engine.submit() for _ in range(RINGS)]
    orphans = [requests[number] for number in (5, 3, 40, 7)]
    for sequence, _, _ in orphans:
        sequence.orphan()
    made = [asyncio.ensure_future(engine.client.make_room(number, 3)) for number in (1, 2)]
    await asyncio.sleep(0)
    assert not any(task.done() for task in made)
    assert [codes(sink) for _, _, sink in orphans] == [["stream_given_up"]] * 3 + [[]]
    assert sorted(end_cancelled(engine)) == sorted(ring for _, ring, _ in orphans[:3])
    await asyncio.gather(*made)
    assert engine.client.rings_in_use == RINGS - 3
    assert not any(sink.ends for request in requests if request not in orphans for sink in request[2:])
    assert any(isinstance(record, Hold) for record in engine.sent)


async def test_who_finds_its_room_taken_gives_up_another(engine: Engine) -> None:
    """A request that came between the end of an orphan and the one that waits for its ring."""
    requests = [engine.submit() for _ in range(RINGS)]
    for sequence, _, _ in requests[:2]:
        sequence.orphan()
    waiting = asyncio.ensure_future(engine.client.make_room(1, 3))
    await asyncio.sleep(0)
    end_cancelled(engine)
    engine.client.on_wake()
    engine.submit()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not waiting.done()
    end_cancelled(engine)
    await waiting
    assert [codes(sink) for _, _, sink in requests[:3]] == [["stream_given_up"], ["stream_given_up"], []]


async def test_orphans_make_room_in_the_queue_too() -> None:
    """A queue that is full of those whose clients have gone refuses nobody."""
    with running_engine(admission=Admission(max_num_seqs=1, max_queued_requests=1)) as engine:
        orphan, other = engine.submit(), engine.submit()
        orphan[0].orphan()
        waiting = asyncio.ensure_future(engine.client.make_room(1, 3))
        await asyncio.sleep(0)
        assert end_cancelled(engine) == [orphan[1]]
        await waiting
        engine.submit()
        assert codes(other[2]) == []


async def test_key_at_its_limit_gives_up_its_own() -> None:
    """The end of another key's orphan would not help, however old that is."""
    alice, bob = Requester(0), Requester(1)
    with running_engine(admission=Admission(max_requests_per_key=1)) as engine:
        other, own = engine.submit(requester=bob), engine.submit(requester=alice)
        for sequence, _, _ in (other, own):
            sequence.orphan()
        await engine.client.make_room(1, 3, alice)
        assert (codes(other[2]), codes(own[2])) == ([], ["stream_given_up"])
        engine.submit(requester=alice)


async def test_queue_of_tokens_gives_up_those_that_have_not_begun() -> None:
    """The prompt of one that has begun waits no more."""
    with running_engine(admission=Admission(max_queued_tokens=4)) as engine:
        begun = engine.submit()
        engine.commit([(begun[1], 1)])
        await until(lambda: not engine.client.queued_tokens)
        waiting = engine.submit()
        for sequence, _, _ in (begun, waiting):
            sequence.orphan()
        await engine.client.make_room(1, 3)
        assert (codes(begun[2]), codes(waiting[2])) == ([], ["stream_given_up"])
        engine.submit()


async def test_engine_that_dies_keeps_nobody_waiting(engine: Engine) -> None:
    """The rings of those given up never become free; the request is refused with what is true then."""
    requests = [engine.submit() for _ in range(RINGS)]
    requests[0][0].orphan()
    waiting = asyncio.ensure_future(engine.client.make_room(1, 3))
    await asyncio.sleep(0)
    engine.client.engine_died(DIED)
    await until(waiting.done)
    assert codes(requests[0][2]) == ["stream_given_up"]
    assert codes(requests[1][2]) == ["engine_died"]


async def test_dead_engine_has_no_room_to_make() -> None:
    """A request that was read while it lived comes when its arena may be closed: it passes, to be refused as it is."""
    with running_engine() as engine:
        engine.client.engine_died(DIED)
        await engine.client.make_room(1, 3)
    await engine.client.make_room(1, 3)


async def test_server_that_stops_ends_its_orphans(engine: Engine) -> None:
    """Those that there are, and each one to come, so that it waits for none; the others go on."""
    there, to_come, other = engine.submit(), engine.submit(), engine.submit()
    there[0].orphan()
    engine.client.end_orphans()
    to_come[0].orphan()
    assert [codes(sink) for _, _, sink in (there, to_come, other)] == [["server_shutdown"], ["server_shutdown"], []]
    assert sorted(engine.producer.take_cancelled()) == sorted([there[1], to_come[1]])
    assert [record for record in engine.sent if not isinstance(record, Wake)] == [Hold(ring=there[1])]


async def test_orphan_that_has_ended_is_forgotten(engine: Engine) -> None:
    """Cancelled when its time is up: its ring may belong to another by the time that it would be released."""
    sequence, ring, sink = engine.submit()
    sequence.orphan()
    sequence.cancel()
    engine.sent.clear()
    end_cancelled(engine)
    engine.client.on_wake()
    sequence.adopt()
    sequence.orphan()
    engine.client.end_orphans()
    assert engine.sent == []
    assert sink.ends == []
    assert engine.client.rings_in_use == 0
    assert ring in {engine.submit()[1] for _ in range(RINGS)}
