"""A drain that writes to sockets: real TCP connections, full ones and broken ones included."""

from __future__ import annotations

import contextlib
import select
import socket
import struct
from typing import TYPE_CHECKING

import pytest

from rbee.messages import FinishReason
from rbee.transport import FrameTemplate, LastFrames, Outlet, Slot, Vocabulary, _native  # noqa: TID251 - what observers see is tested here too

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

VOCABULARY = Vocabulary([bytes([byte]) for byte in range(256)])


def last_frames(after: bytes) -> LastFrames:
    """Frames that end with `after`."""
    return LastFrames(b"F%b%b" % (Slot.TEXT, after), b"N%b%b" % (Slot.TEXT, after), b"E" + after, b'F""' + after)


# Frames that show which they are: F "a" A, for example.
TEMPLATE = FrameTemplate(
    first=b"F%bA\n\n" % Slot.TEXT,
    next=b"N%bA\n\n" % Slot.TEXT,
    stop=last_frames(b"S\n\n"),
    length=last_frames(b"L\n\n"),
    deadline=last_frames(b"T\n\n"),
    end=b"D",
)
STOP, LENGTH, ERROR, DEADLINE = 1, 2, 4, 5


def make_outlet(fd: int, *, stop_token_ids: tuple[int, ...] = (), template: FrameTemplate = TEMPLATE) -> Outlet:
    """An outlet that shows each byte in a frame of its own."""
    return Outlet(fd, VOCABULARY, template, strip=False, prompt_tokens=3, stop_token_ids=list(stop_token_ids))


def chunk(body: bytes) -> bytes:
    """One HTTP/1.1 chunk."""
    return b"%x\r\n%b\r\n" % (len(body), body)


@pytest.fixture
def connect() -> Iterator[Callable[[], tuple[socket.socket, socket.socket]]]:
    """Makes connections; (the server's end, the client's end), the former with a small send buffer."""
    with contextlib.ExitStack() as stack:

        def make() -> tuple[socket.socket, socket.socket]:
            listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            client = socket.socket()
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect(listener.getsockname())
            stack.callback(client.close)
            server, _ = listener.accept()
            server.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
            server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            stack.callback(server.close)
            client.settimeout(30)
            return server, client

        yield make


def receive(sock: socket.socket, size: int) -> bytes:
    """Exactly so many bytes."""
    data = b""
    while len(data) < size:
        piece = sock.recv(size - len(data))
        assert piece, f"the connection ended after {data!r}"
        data += piece
    return data


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


@pytest.mark.parametrize(("reason", "after"), [(STOP, b"S"), (LENGTH, b"L"), (DEADLINE, b"T")])
def test_ordinary_ends_count_tokens_and_what_was_cached(sides, connect, reason, after):
    """The last frame says why it is the last; the usage behind it has the finish's detail as the cached tokens."""
    ring = sides.start()
    server, client = connect()
    template = TEMPLATE._replace(end=b"U%b,%b,%bD" % (Slot.NUM_TOKENS, Slot.TOTAL_TOKENS, Slot.CACHED_TOKENS))
    sides.consumer.attach(ring, make_outlet(server.fileno(), template=template))
    finish = reason | 0xABCDEF << 8
    sides.commit([(ring, ord("a"))], {ring: finish})
    assert sides.consumer.drain().ended == [(ring, finish)]
    expected = chunk(b'F"a"%b\n\nU1,4,%dD' % (after, 0xABCDEF))
    assert receive(client, len(expected)) == expected


def test_stream_without_text_has_one_frame(sides, connect):
    """It is `empty`, not the first text frame with no text."""
    ring = sides.start()
    server, client = connect()
    sides.consumer.attach(ring, make_outlet(server.fileno(), stop_token_ids=(9,)))
    sides.commit([(ring, 9)], {ring: STOP})
    sides.consumer.drain()
    expected = chunk(b'F""S\n\nD')
    assert receive(client, len(expected)) == expected


def test_slots_have_the_numbers_of_their_frame(sides, connect):
    """Frames are counted apart from tokens; what is about a token is left out behind a batch that has none."""
    ring = sides.start()
    server, client = connect()
    numbers = b"%b/%b/%b" % (Slot.INDEX, Slot.NUM_TOKENS, Slot.TOTAL_TOKENS)
    token = Slot.TOKEN_BEGIN + b"@" + Slot.COMMITTED_NS + Slot.TOKEN_END
    frame = b"(%b %b%b)" % (Slot.TEXT, numbers, token)
    last = LastFrames(b"first" + frame, b"next" + frame, b"last(%b%b)" % (numbers, token), b"empty")
    end = b"end(%b %b%b)" % (numbers, Slot.CACHED_TOKENS, token)
    template = FrameTemplate(b"first" + frame, b"next" + frame, last, last, last, end)
    sides.consumer.attach(ring, make_outlet(server.fileno(), stop_token_ids=(9,), template=template))
    # The first byte of a character shows nothing.
    earlier = sides.commit([(ring, ord("a")), (ring, 0xC3)])
    sides.consumer.drain()
    later = sides.commit([(ring, 0xA9), (ring, 9)])
    sides.consumer.drain()
    sides.commit([], {ring: LENGTH | 2 << 8})
    sides.consumer.drain()
    expected = (
        chunk(b'first("a" 0/1/4@%d)' % earlier)
        + chunk(b'next("\xc3\xa9" 1/3/6@%d)' % later)
        + chunk(b"last(2/4/7)end(2/4/7 2)")
    )
    assert receive(client, len(expected)) == expected


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"first": b"\0"}, "control byte 0, which is no slot"),
        ({"next": b"\x1f"}, "control byte 31, which is no slot"),
        ({"end": b"\x0b"}, "control byte 11, which is no slot"),
        ({"first": Slot.TOKEN_BEGIN}, "TOKEN_BEGIN without a TOKEN_END"),
        ({"first": Slot.TOKEN_END}, "TOKEN_END without a TOKEN_BEGIN"),
        ({"first": Slot.TOKEN_BEGIN * 2 + Slot.TOKEN_END}, "TOKEN_BEGIN inside of another"),
        ({"end": Slot.TEXT}, "TEXT in a frame that has no text"),
        ({"length": TEMPLATE.length._replace(last=Slot.TEXT)}, "TEXT in a frame that has no text"),
        ({"stop": TEMPLATE.stop._replace(empty=Slot.TEXT)}, "TEXT in a frame that has no text"),
        ({"next": Slot.CACHED_TOKENS}, "CACHED_TOKENS in a frame that is not the last"),
    ],
)
def test_unsound_templates_are_refused(changed, sentence):
    """Before anything is written with them."""
    with pytest.raises(ValueError, match=sentence):
        make_outlet(0, template=TEMPLATE._replace(**changed))


def test_slots_are_control_bytes_that_no_frame_has():
    """One byte each, all different, none of them a line end or a tab."""
    slots = {name: value for name, value in vars(Slot).items() if name.isupper()}
    assert len(set(slots.values())) == len(slots)
    assert all(len(slot) == 1 and slot < b" " and slot not in b"\t\n\r" for slot in slots.values())


def test_deadline_before_the_first_token_is_not_an_ordinary_end(sides, connect):
    """Nothing is written: the caller says why."""
    ring = sides.start()
    server, client = connect()
    sides.consumer.attach(ring, make_outlet(server.fileno()))
    sides.commit([], {ring: DEADLINE})
    assert sides.consumer.drain().ended == [(ring, DEADLINE)]
    server.close()
    assert client.recv(1) == b""


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


def test_failure_shows_all_text_and_leaves_the_end_to_the_caller(sides, connect):
    """A finish that is no ordinary one is not written: its words are not the drain's business."""
    ring = sides.start()
    server, client = connect()
    sides.consumer.attach(ring, make_outlet(server.fileno()))
    sides.commit([(ring, ord("a")), (ring, 0xC3)], {ring: ERROR})
    assert sides.consumer.drain().ended == [(ring, ERROR)]
    expected = chunk(b'F"a"A\n\nN"\xef\xbf\xbd"A\n\n')
    assert receive(client, len(expected)) == expected


def test_stop_token_is_counted_and_not_shown(sides, connect):
    """The frame that ends the stream has no text then."""
    ring = sides.start()
    server, client = connect()
    outlet = make_outlet(server.fileno(), stop_token_ids=(9,))
    sides.consumer.attach(ring, outlet)
    sides.commit([(ring, ord("a")), (ring, 9)], {ring: STOP})
    sides.consumer.drain()
    expected = chunk(b'F"a"A\n\nES\n\nD')
    assert receive(client, len(expected)) == expected
    assert outlet.num_tokens == 2
    assert outlet.written_ns > 0


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
    sides.consumer.note_first_token(1000)
    sides.consumer.note_gap(2000)
    sides.consumer.note_gap(2000)
    *_, histograms = _native.observe(sides.created.buffer.toreadonly())
    assert (sum(histograms["first_token"]), sum(histograms["token_gap"])) == (1, 2)


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


def test_finish_codes_are_the_same_on_both_sides():
    """C++ and `FinishReason` agree about the ordinary ends."""
    assert {name: FinishReason[name] for name in _native.ORDINARY_FINISHES} == _native.ORDINARY_FINISHES
    assert set(FrameTemplate._fields[2:5]) == {name.lower() for name in _native.ORDINARY_FINISHES}
