"""Streams that outlive their connection: what is written again, to whom, and for how long."""

import asyncio
import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rbee.messages import FinishReason
from rbee.server.errors import Refusal, RefusalKind
from rbee.server.http import sse
from rbee.server.streams.pieces import Piece
from rbee.server.streams.resumption import read_last_event_id
from tests.fakes import RecordingWriter
from tests.server.streams.streams_parts import (
    OWNER,
    PATIENCE,
    make_resumption,
    moment_of,
    numbered_events,
    refusal,
)
from tests.server.streams.streams_parts import ResumableCase as Case

pytestmark = pytest.mark.anyio

NON_ASCII = "Zü🐝字\u2028é"  # 15 tokens


@pytest.mark.parametrize("chat", [True, False])
@pytest.mark.parametrize("window", [1024, 15])
async def test_cut_at_every_byte(chat, window):
    """Whatever a client got before its connection broke, with the rest it has every byte of every event once."""
    case = Case(chat=chat, window=window, include_usage=True)
    case.deliver(NON_ASCII.encode()[:7])
    case.deliver(NON_ASCII.encode()[7:], FinishReason.LENGTH)
    case.reply.leave(case.writer)
    whole = case.written()
    assert [event[1] for event in numbered_events(whole)][-1].endswith(b"data: [DONE]")
    for cut in range(len(whole) + 1):
        got = numbered_events(whole[:cut])
        rest = numbered_events(case.resume(got[-1][0] if got else 0))
        assert got + rest == numbered_events(whole)


TOKENS = st.text("ab\u00e9字🐝E", max_size=12).map(str.encode)
CUTS = st.lists(st.integers(0, 10_000), min_size=1, max_size=4)


@given(st.lists(TOKENS, min_size=1, max_size=6), st.sampled_from(FinishReason), st.booleans(), st.booleans(), CUTS)
async def test_cut_in_the_middle_of_generation(drains, reason, chat, extras, cuts):
    """However often a connection breaks while tokens come, the events that a client got are those of one stream."""
    options = {"chat": chat, "include_timing": extras, "include_usage": extras, "logprobs": extras, "stops": ["EE"]}
    undisturbed, case = Case(**options), Case(**options)
    got, writer = [], case.writer
    for number, data in enumerate(drains):
        end = reason if number == len(drains) - 1 else 0
        for each in (undisturbed, case):
            if not each.reply.finished:
                each.deliver(data, end)
        sent = b"".join(writer.written)
        got += numbered_events(sent[: cuts[number % len(cuts)] % (len(sent) + 1)])
        case.reply.leave(writer)
        writer = RecordingWriter()
        assert case.reply.has_more(got[-1][0] if got else 0) or case.reply.finished
        case.reply.attach(writer, got[-1][0] if got else 0)
    got += numbered_events(b"".join(writer.written))
    assert got == numbered_events(undisturbed.written())
    ids = [event_id for event_id, _ in got]
    assert ids == sorted(set(ids))


@given(st.lists(TOKENS, max_size=6), st.integers(1, 12))
async def test_window_is_bounded_and_exact(drains, window):
    """As many tokens as the window has can be had again, and what is older is refused by name, never left out."""
    case = Case(window=window)
    for data in drains:
        case.deliver(data)
    assert len(numbered_events(case.reply.events.since(case.reply.events.forgotten_id))) <= window
    whole, last = numbered_events(case.written()), case.reply.events.last_id
    for last_id in range(last + 1):
        if refusal(case.reply.check_replay, last_id):
            assert refusal(case.reply.check_replay, last_id) == (410, "replay_window_passed")
            assert last_id < last - window + 1
        else:
            assert numbered_events(case.reply.events.since(last_id)) == [event for event in whole if event[0] > last_id]


async def test_logprobs_are_written_again():
    """Byte for byte, as everything else."""
    case = Case(logprobs=True)
    case.deliver("aéb".encode(), FinishReason.LENGTH)
    whole = numbered_events(case.written())
    assert [event.count(b'"logprob"') for _, event in whole] == [1, 2, 1, 0]
    assert numbered_events(case.resume(0)) == whole


async def test_id_counts_tokens():
    """Those without text too; what comes at the end without a token counts on by one, so that no id comes twice."""
    case = Case()
    case.deliver("a海b".encode())
    case.deliver(b"", FinishReason.ABORT)
    ids = [event_id for event_id, _ in numbered_events(case.written())]
    assert ids == [1, 4, 5, 6, 7]


async def test_every_frame_is_as_without_ids_but_for_the_id():
    """The id is a line of its own before the data; nothing else changes."""
    case = Case()
    case.deliver(b"ab", FinishReason.LENGTH)
    first, last = Piece("a", 1, 1, []), Piece("b", 2, 2, [])
    wanted = [
        case.dialect.piece(0, first, 0),
        case.dialect.end(0, last, 1, FinishReason.LENGTH),
        sse.DONE,
    ]
    assert case.written() == b"".join(b"id: %d\n%b" % (n, frame) for n, frame in enumerate(wanted, start=1))


async def test_client_that_leaves_may_come_back():
    """Its tokens wait; when it comes back they go to the new connection, from where the old one had them."""
    case = Case()
    case.deliver(b"ab")
    case.reply.on_closed()
    assert case.calls == ["orphan"]
    assert case.reply.done.done()
    assert case.streams.find(OWNER, "i") is case.streams.find(OWNER, "request") is case.reply
    writer = RecordingWriter()
    case.reply.attach(writer, 1)
    assert [event_id for event_id, _ in numbered_events(writer.written[0])] == [2]
    assert not case.reply.done.done()
    case.reply.on_resume()
    case.deliver(b"c", FinishReason.LENGTH)
    assert [event_id for event_id, _ in numbered_events(writer.written[1])] == [3, 4]
    assert case.reply.done.done()
    assert case.calls == ["orphan", "adopt", "resume"]


async def test_newest_connection_takes_over():
    """The older one is dropped and its response is over; what it still does changes nothing."""
    case = Case()
    case.writer.open(case.reply)
    case.deliver(b"ab")
    old, newer = case.reply.done, RecordingWriter()
    case.reply.attach(newer, 0)
    assert case.writer.aborted
    assert case.writer.listener is None
    assert old.done()
    assert not case.reply.done.done()
    assert case.reply.leave(case.writer) is False
    assert case.calls == ["adopt"]
    case.deliver(b"c")
    assert [len(numbered_events(data)) for data in newer.written] == [2, 1]
    assert len(case.writer.written) == 1


class FullWriter(RecordingWriter):
    """A writer whose socket is full as soon as the head of its response is on its way."""

    def open(self, listener, *, direct=False):
        """Say so."""
        super().open(listener, direct=direct)
        self.paused = True
        listener.on_pause()


async def test_replay_that_fills_the_socket_leaves_the_stream_paused():
    """Tokens go on waiting in the ring until the client has read what it missed; then they come."""
    case, writer, sent = Case(), FullWriter(), []

    async def send(message):
        sent.append(message["type"])

    case.deliver(b"ab")
    case.reply.on_closed()
    task = asyncio.ensure_future(make_resumption(case.reply, 0, writer, case.watch)(send))
    while writer.listener is None:  # noqa: ASYNC110 - nothing but the task has to run
        await asyncio.sleep(0)
    assert case.calls == ["orphan", "adopt", "pause"]
    assert case.reply in case.watch.open
    case.reply.on_resume()
    case.deliver(b"c", FinishReason.LENGTH)
    await task
    assert sent == ["http.response.start", "http.response.body"]
    assert [event_id for event_id, _ in numbered_events(b"".join(writer.written))] == [1, 2, 3, 4]
    assert case.watch.open == {case.streams}


class GoneWriter(RecordingWriter):
    """A writer whose client has left before the head of its response was on its way."""

    def open(self, listener, *, direct=False):
        """Say so."""
        super().open(listener, direct=direct)
        self.closed = True
        listener.on_closed()


async def test_client_that_is_gone_when_its_response_begins():
    """Its stream goes on waiting: what came now would be lost."""
    case = Case()

    async def send(message):
        assert message["type"].startswith("http.response")

    case.deliver(b"ab")
    case.reply.on_closed()
    await make_resumption(case.reply, 0, GoneWriter(), case.watch)(send)
    assert case.calls == ["orphan", "adopt", "orphan"]
    assert case.watch.open == {case.streams}


async def test_connection_that_is_taken_over_before_it_began():
    """The older of two that come back at once never gets to write; the newer one is not disturbed by its end."""
    case, older, newer = Case(), RecordingWriter(), RecordingWriter()
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def send(message):
        assert message["type"].startswith("http.response")
        begun.set()
        await go_on.wait()

    case.deliver(b"ab")
    case.reply.on_closed()
    task = asyncio.ensure_future(make_resumption(case.reply, 0, older, case.watch)(send))
    await begun.wait()
    case.reply.attach(newer, 0)
    case.watch.add(case.reply)
    go_on.set()
    await task
    assert older.aborted
    assert older.listener is None
    assert case.reply in case.watch.open
    case.deliver(b"c")
    assert [len(numbered_events(data)) for data in newer.written] == [2, 1]
    assert case.calls == ["orphan", "adopt", "adopt"]


async def test_what_ends_without_a_connection_is_told_later():
    """The engine may die while nobody listens; who comes back is told."""
    case = Case()
    case.deliver(b"a")
    case.reply.on_closed()
    case.deliver(b"b")
    case.reply.fail(Refusal(RefusalKind.UNAVAILABLE, "Gone.", code="engine_died"))
    assert len(case.writer.written) == 1
    token, error, done = [event for _, event in numbered_events(case.resume(1))]
    assert b'"content":"b"' in token
    assert json.loads(error.partition(b"data: ")[2])["error"]["code"] == "engine_died"
    assert done.endswith(b"[DONE]")
    assert case.reply.done.done()
    assert not case.reply.has_more(4)


async def test_id_that_was_never_sent_is_refused():
    """A client that says so speaks of another stream."""
    case = Case()
    case.deliver(b"ab")
    assert case.reply.has_more(2)
    assert refusal(case.reply.check_replay, 3) == (400, "invalid_last_event_id")


def gone(case, owner, name):
    """Whether the owner's stream is not found, as a 410."""
    refused = refusal(case.streams.find, owner, name)
    assert refused in {None, (410, "stream_gone")}
    return refused is not None


async def test_only_the_owner_finds_a_stream():
    """For everybody else it is unknown."""
    case = Case()
    assert not gone(case, OWNER, "i")
    assert gone(case, ("other", "chat"), "i")
    assert gone(case, ("key", "completion"), "i")
    assert gone(case, OWNER, "j")


async def test_name_stands_for_the_newest_stream():
    """A request id used twice names the second stream, also when the first is forgotten."""
    first = Case(resume_timeout=5.0)
    second = Case(streams=first.streams)
    assert first.streams.find(OWNER, "request") is second.reply
    left = moment_of(first.reply.on_closed)
    first.streams.check(left.after(5.0), PATIENCE)
    assert first.calls == ["orphan", "cancel"]
    assert first.streams.find(OWNER, "request") is second.reply


@pytest.mark.parametrize("finished", [False, True])
async def test_stream_without_a_connection_is_forgotten_in_time(finished):
    """After the resume timeout, not before, and not while it has a connection."""
    case = Case(resume_timeout=30.0)
    delivered = moment_of(lambda: case.deliver(b"a", FinishReason.LENGTH if finished else 0))
    case.streams.check(delivered.after(100.0), PATIENCE)
    assert not gone(case, OWNER, "i")
    left = moment_of(lambda: case.reply.leave(case.writer))
    assert case.streams in case.watch.open
    case.streams.check(left.before(30.0), PATIENCE)
    assert not gone(case, OWNER, "i")
    writer = RecordingWriter()
    attached = moment_of(lambda: case.reply.attach(writer, 0))
    assert case.streams not in case.watch.open
    case.streams.check(attached.after(100.0), PATIENCE)
    assert not gone(case, OWNER, "i")
    left = moment_of(lambda: case.reply.leave(writer))
    case.streams.check(left.after(30.0), PATIENCE)
    assert gone(case, OWNER, "i")
    assert gone(case, OWNER, "request")
    assert case.streams not in case.watch.open
    assert case.calls[-1] == "cancel"


async def test_ended_streams_are_bounded():
    """The oldest ones go first, and those that have not ended are not counted."""
    first = Case(max_ended=2)
    cases = [first, *(Case(streams=first.streams) for _ in range(4))]
    for number, case in enumerate(cases):
        first.streams.add(case.reply, OWNER, f"{number}")
        case.deliver(b"a", FinishReason.LENGTH if number else 0)
        case.reply.leave(case.writer)
    assert [gone(first, OWNER, f"{number}") for number in range(5)] == [False, True, True, False, False]


async def test_slow_reader_of_a_resumable_stream():
    """It ends as any other, and whoever comes back is told why."""
    case = Case()
    case.deliver(b"a")
    paused = moment_of(case.reply.on_pause)
    case.reply.check(paused.after(PATIENCE), PATIENCE)
    assert case.calls == ["pause", "cancel"]
    case.reply.leave(case.writer)
    error, done = [event for _, event in numbered_events(case.resume(1))]
    assert json.loads(error.partition(b"data: ")[2])["error"]["code"] == "slow_reader"
    assert done.endswith(b"[DONE]")


@pytest.mark.parametrize("given", ["", "x", "-1", "1.5", " 1", "٣", "9" * 19])
def test_last_event_id_must_be_a_number(given):
    """Anything else is refused."""
    assert refusal(read_last_event_id, given) == (400, "invalid_last_event_id")


def test_last_event_id():
    """A number, perhaps with zeros before it."""
    assert list(map(read_last_event_id, ["0", "12", "007"])) == [0, 12, 7]


async def test_ids_of_a_stream_with_every_option_are_ascending():
    """Timing, usage in every chunk and at the end, a stop string: one id each, replayed as they were."""
    case = Case(stops=["END"], include_timing=True, continuous_usage_stats=True, include_usage=True)
    for data in (b"ab", b"c", b"ENDx"):
        case.deliver(data)
    whole = numbered_events(case.written())
    ids = [event_id for event_id, _ in whole]
    assert all(a < b for a, b in itertools.pairwise(ids))
    assert numbered_events(case.reply.events.since(0)) == whole
