"""A drain that writes to sockets: real TCP connections, full ones and broken ones included."""

from __future__ import annotations

import contextlib
import select
import socket
import struct

import pytest

from rbee.messages import SIDE_RECORD
from rbee.transport import Outlet, _native  # noqa: TID251 - what observers see is tested here too
from tests.transport.delivery_parts import (
    LENGTH,
    STOP,
    TEMPLATE,
    VOCABULARY,
    chunk,
    make_outlet,
    receive,
)


def test_tokens_become_chunks_on_the_socket(sides, connect):
    """All frames of a drain are one chunk, the finish comes with the last, and none of it is returned."""
    ring = sides.start()
    server, client = connect()
    sides.consumer.attach(ring, make_outlet(server.fileno()))
    sides.commit([(ring, ord("a")), (ring, ord("b"))])
    drained = sides.consumer.drain()
    assert (drained.rings, drained.tokens, drained.ended, drained.blocked, drained.broken) == ([], [], [], [], [])
    expected = chunk(b'F"a"A\n\nN"b"A\n\n')
    assert receive(client, len(expected)) == expected
    sides.commit([(ring, ord('"'))], {ring: LENGTH})
    assert sides.consumer.drain().ended == [(ring, LENGTH)]
    expected = chunk(b'N"\\""L\n\nD')
    assert receive(client, len(expected)) == expected
    assert sides.consumer.in_use == 0


def test_neighbours_are_returned(sides, connect):
    """Rings without an outlet are drained as ever, beside those with one."""
    attached, plain = sides.start(), sides.start()
    server, _ = connect()
    sides.consumer.attach(attached, make_outlet(server.fileno()))
    sides.commit([(attached, 1), (plain, 2), (attached, 3)], {plain: STOP})
    drained = sides.consumer.drain()
    assert (drained.rings, drained.tokens, drained.finishes) == ([plain], [2], [STOP])


def test_ring_that_ended_is_detached(sides, connect):
    """The next request of the ring has nothing to do with the outlet of the last one."""
    ring = sides.start()
    server, _ = connect()
    sides.consumer.attach(ring, make_outlet(server.fileno()))
    sides.commit([], {ring: STOP})
    assert sides.consumer.drain().ended == [(ring, STOP)]
    assert sides.start() == ring
    sides.commit([(ring, 7)])
    assert sides.consumer.drain().tokens == [7]


def test_detached_ring_is_returned(sides, connect):
    """What comes after a detach is nobody's but the caller's."""
    ring = sides.start()
    server, client = connect()
    sides.consumer.attach(ring, make_outlet(server.fileno()))
    sides.consumer.detach(ring)
    sides.consumer.detach(ring)
    sides.commit([(ring, 7)])
    assert sides.consumer.drain().tokens == [7]
    server.close()
    assert client.recv(1) == b""


def test_only_assigned_rings_can_be_attached(sides, connect):
    """An outlet for a ring that nobody has would write the next request's tokens to a stranger."""
    server, _ = connect()
    with pytest.raises(ValueError, match="Ring 0 is not assigned"):
        sides.consumer.attach(0, make_outlet(server.fileno()))
    with pytest.raises(ValueError, match="Ring 64 is not assigned"):
        sides.consumer.attach(64, make_outlet(server.fileno()))


def test_full_socket_gives_the_rest_back_and_pauses_its_ring(make_sides, connect):
    """Nothing is lost or overtaken: sent bytes, the rest, and what comes after resume are the whole stream."""
    sides = make_sides(ring_capacity=4096)
    ring = sides.start()
    server, client = connect()
    sides.consumer.attach(ring, make_outlet(server.fileno()))
    expected, rest = b"", b""
    while not rest:
        sides.commit([(ring, ord("x"))] * 500)
        frames = (b"" if expected else b'F"x"A\n\n') + b'N"x"A\n\n' * (500 if expected else 499)
        expected += chunk(frames)
        for blocked_ring, data in sides.consumer.drain().blocked:
            assert blocked_ring == ring
            rest = data
    sides.commit([(ring, ord("y"))], {ring: STOP})
    assert sides.consumer.drain().ended == [], "a paused ring is left alone"
    received = receive(client, len(expected) - len(rest)) + rest
    assert received == expected
    assert sides.consumer.resume(ring)
    assert sides.consumer.drain().ended == [(ring, STOP)]
    last = chunk(b'N"y"S\n\nD')
    assert receive(client, len(last)) == last
    assert sides.consumer.counters()["blocked_sends"] == 1


def test_full_socket_of_a_ring_that_ends(make_sides, connect):
    """The rest comes with the end; the ring is free and not paused for its next request."""
    sides = make_sides(ring_capacity=4096)
    ring = sides.start()
    server, _ = connect()
    sides.consumer.attach(ring, make_outlet(server.fileno()))
    while True:
        with contextlib.suppress(BlockingIOError):
            server.send(b"x" * 4096, socket.MSG_DONTWAIT)
            continue
        break
    sides.commit([(ring, ord("x"))], {ring: STOP})
    drained = sides.consumer.drain()
    assert drained.ended == [(ring, STOP)]
    [(blocked, rest)] = drained.blocked
    assert blocked == ring
    assert chunk(b'F"x"S\n\nD').endswith(rest)
    assert sides.start() == ring
    sides.commit([(ring, 7)])
    assert sides.consumer.drain().tokens == [7]


def test_broken_socket_is_told(sides, connect):
    """A connection that was reset harms nobody else; its ring is named until it is cancelled."""
    ring, neighbour = sides.start(), sides.start()
    server, client = connect()
    sides.consumer.attach(ring, make_outlet(server.fileno()))
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()
    arrived = select.poll()
    arrived.register(server, select.POLLHUP | select.POLLERR)
    assert arrived.poll(30_000), "the reset should arrive"
    sides.commit([(ring, 1), (neighbour, 2)])
    drained = sides.consumer.drain()
    assert drained.broken == [ring]
    assert drained.tokens == [2]


def test_dead_engine_leaves_nothing_behind_a_full_socket(sides, connect):
    """What a paused ring holds is not sent past the bytes that its socket still waits for: it is given back whole."""
    paused, ready = sides.start(), sides.start()
    (paused_server, paused_client), (ready_server, ready_client) = connect(), connect()
    sides.consumer.attach(paused, make_outlet(paused_server.fileno()))
    sides.consumer.attach(ready, make_outlet(ready_server.fileno()))
    sides.consumer.pause(paused)
    sides.commit([(paused, ord("a")), (ready, ord("b"))], {paused: STOP})
    sides.consumer.expect_all()
    drained = sides.consumer.drain()
    assert drained.blocked == [(paused, chunk(b'F"a"S\n\nD'))]
    assert drained.ended == [(paused, STOP)]
    expected = chunk(b'F"b"A\n\n')
    assert receive(ready_client, len(expected)) == expected
    paused_server.close()
    assert paused_client.recv(1) == b""


def test_what_the_drain_does_is_counted(sides, connect):
    """Tokens, sends and latencies of both ways out of a ring can be read from outside."""
    attached, plain = sides.start(), sides.start()
    server, _ = connect()
    sides.consumer.attach(attached, make_outlet(server.fileno()))
    sides.commit([(attached, 1), (attached, 2), (plain, 3)])
    sides.consumer.drain()
    sides.consumer.note_delivered()
    sides.consumer.note_loop_lag(1000)
    sides.consumer.note_collection(2000)
    sides.producer.report(
        5000, sequences_running=2, sequences_waiting=1, kv_blocks=9, kv_blocks_used=4, preemptions=3,
        prompt_tokens=7, cached_prompt_tokens=5
    )  # fmt: skip
    epoch, _, counters, histograms = _native.observe(sides.created.buffer.toreadonly())
    assert epoch == 5
    assert (counters["direct_tokens"], counters["direct_sends"], counters["tokens_drained"]) == (2, 1, 3)
    assert 0 < counters["send_ns"] + counters["render_ns"] <= counters["drain_ns"]
    assert (counters["gc_pauses"], counters["gc_pause_ns"]) == (1, 2000)
    assert (counters["sequences_running"], counters["sequences_waiting"], counters["preemptions"]) == (2, 1, 3)
    assert (counters["kv_blocks"], counters["kv_blocks_used"]) == (9, 4)
    assert (counters["prompt_tokens"], counters["cached_prompt_tokens"]) == (7, 5)
    bounds = _native.histogram_bounds()
    seen = {name: [bounds[i] for i, n in enumerate(counts) if n] for name, counts in histograms.items()}
    assert sum(histograms["delivery"]) == 3
    assert seen["loop_lag"] == [992]  # 16 buckets between 512 and 1024
    assert seen["step"] == [4864]


def test_polling_finds_what_an_earlier_drain_left(sides):
    """What was over a drain's budget, or in a paused ring, is a reason to drain although no step comes."""
    ring = sides.start()
    sides.commit([(ring, 1), (ring, 2)])
    assert sides.consumer.drain(1, polling=True).more
    assert sides.consumer.poll(0)
    assert sides.consumer.drain(polling=True).tokens == [2]
    sides.consumer.pause(ring)
    sides.commit([(ring, 3)])
    assert sides.consumer.drain(polling=True).tokens == []
    assert not sides.consumer.poll(0)
    sides.consumer.resume(ring)
    assert sides.consumer.poll(0)
    assert sides.consumer.drain(polling=True).tokens == [3]


def test_polling_needs_no_doorbell(sides):
    """A server that looks by itself is not woken; one drain without polling arms the doorbell again."""
    ring = sides.start()
    sides.commit([(ring, 1)])  # an arena is armed from the start
    sides.consumer.silence()
    assert sides.consumer.poll(0)
    assert sides.consumer.drain(polling=True).tokens == [1]
    assert not sides.consumer.poll(1000)
    sides.commit([(ring, 2)])
    assert sides.consumer.poll(0)
    assert not sides.rung()
    assert sides.consumer.drain(polling=True).tokens == [2]
    assert sides.consumer.drain().tokens == []
    sides.commit([(ring, 3)])
    assert sides.rung()


def test_first_token_and_gaps_are_timed(sides, connect):
    """From the request's receipt to its first content; then one gap per token, of no length within one write."""
    ring = sides.start()
    server, _ = connect()
    outlet = Outlet(
        server.fileno(), VOCABULARY, TEMPLATE, strip=False, prompt_tokens=3, stop_token_ids=[], received_ns=1
    )
    sides.consumer.attach(ring, outlet)

    def counts() -> tuple[int, int, int]:
        *_, histograms = _native.observe(sides.created.buffer.toreadonly())
        return sum(histograms["first_token"]), histograms["token_gap"][0], sum(histograms["token_gap"])

    sides.commit([(ring, 0xC3)])
    sides.consumer.drain()
    assert counts() == (0, 0, 0), "half a character is no content"
    sides.commit([(ring, 0xA9), (ring, ord("b"))])
    sides.consumer.drain()
    assert counts() == (1, 1, 1)
    sides.commit([(ring, ord("c")), (ring, ord("d")), (ring, ord("e"))], {ring: STOP})
    sides.consumer.drain()
    assert counts() == (1, 3, 4)
    *_, histograms = _native.observe(sides.created.buffer.toreadonly())
    assert sum(histograms["first_token"][300:]) == 1, "since the machine's start"


def test_streams_that_python_writes_are_timed_alike(sides):
    """The same two histograms."""

    def counts() -> tuple[int, int]:
        *_, histograms = _native.observe(sides.created.buffer.toreadonly())
        return sum(histograms["first_token"]), sum(histograms["token_gap"])

    def start(received_ns: int) -> int:
        assigned = sides.consumer.assign(received_ns)
        sides.producer.open(*assigned)
        ring: int = assigned[0]
        return ring

    def deliver(*arguments: object) -> None:
        sides.commit(*arguments)
        sides.consumer.drain()
        sides.consumer.note_delivered()

    timed, untimed = start(1), start(0)
    deliver([(timed, ord("a")), (untimed, ord("a"))])
    assert counts() == (1, 0)
    deliver([(timed, ord("b")), (timed, SIDE_RECORD | 1), (timed, ord("c")), (untimed, ord("b"))])
    assert counts() == (1, 2), "a side record is no token"
    deliver([(timed, ord("d"))], {timed: STOP})
    assert counts() == (1, 3)
    assert start(0) == timed
    deliver([(timed, ord("a"))])
    assert counts() == (1, 3), "the ring belongs to another sequence now"


def test_progress_is_seen_until_the_producer_is_closed(sides):
    """The same object each time; afterwards it counts for itself, so that a runner may outlive the arena."""
    progress = sides.producer.progress
    assert progress is sides.producer.progress
    progress.advance()
    progress.advance()
    assert (progress.chunks, sides.consumer.counters()["progress"]) == (2, 2)
    sides.producer.close()
    progress.advance()
    assert (progress.chunks, sides.consumer.counters()["progress"]) == (1, 2)
