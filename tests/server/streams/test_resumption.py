"""Streams that outlive their connection: what is written again, to whom, and for how long."""

import asyncio
import functools
import itertools
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rbee.messages import FinishReason
from rbee.models import synthetic
from rbee.sampling_params import SamplingParams
from rbee.server.errors import ApiError
from rbee.server.protocols.fields import is_resumable, read_last_event_id
from rbee.server.protocols.openai import frames as sse
from rbee.server.protocols.openai.logprobs import TokenRecords, chat_logprobs
from rbee.server.protocols.openai.schemas import StreamOptions
from rbee.server.streams.choices import AnnotatedChoiceSink, TokenText
from rbee.server.streams.exchange import Resumption
from rbee.server.streams.replies import StreamWatch
from rbee.server.streams.resumption import NumberedFrames, ResumableReply, ResumableStreams
from rbee.server.text.detokenizer import detokenizers
from rbee.server.text.stop_strings import StopStrings
from tests.batches import record_batch
from tests.fakes import RecordingStream, RecordingWriter

NEW_DETOKENIZER = detokenizers(synthetic.tokenizer())
NON_ASCII = "Zü🐝字\u2028é"  # 15 tokens
OWNER = ("key", "chat")


class Case:
    """A resumable reply with everything around it; made inside a running loop. A token is a byte."""

    def __init__(self, *, chat=True, window=1024, stops=(), logprobs=False, streams=None, **options):
        text = TokenText(NEW_DETOKENIZER(), StopStrings(stops) if stops else None)
        usage = options.get("include_usage", False)
        frames = sse.Frames(kind="k", request_id="i", created=0, model="m", chat=chat, usage=usage)
        self.watch = StreamWatch(1000.0, 60.0)
        resume_timeout, max_ended = options.pop("resume_timeout", 30.0), options.pop("max_ended", 8)
        self.streams = streams or ResumableStreams(self.watch, resume_timeout=resume_timeout, max_ended=max_ended)
        self.writer = RecordingWriter()
        self.frames = NumberedFrames(frames, window)
        shown = functools.partial(chat_logprobs, token_bytes=NEW_DETOKENIZER.token_bytes) if logprobs else None
        self.reply = ResumableReply(self.writer, self.frames, StreamOptions(**options), 3, shown, streams=self.streams)
        sampling = SamplingParams(max_tokens=99, num_logprobs=0 if logprobs else None)
        self.choice = AnnotatedChoiceSink(0, self.reply, text, TokenRecords(sampling, 3), logprobs=logprobs)
        self.choice.stream = self.reply.stream = RecordingStream()
        self.streams.add(self.reply, OWNER, "i", "request")

    def deliver(self, data, reason=0):
        """These tokens, with commit times 1, 2, 3 ..."""
        self.choice.deliver(record_batch([(token_id, -float(token_id)) for token_id in data], reason))

    def written(self):
        """All that the first connection was sent."""
        return b"".join(self.writer.written)

    def resume(self, last_id):
        """What a new connection is sent at once."""
        writer = RecordingWriter()
        self.reply.attach(writer, last_id)
        return b"".join(writer.written)


def with_case(check, **options):
    """Run `check(case)` inside an event loop."""

    async def run():
        check(Case(**options))

    asyncio.run(run())


def refusal(function, *values):
    """Status and code of the error that this call ends with; None if it does not."""
    try:
        function(*values)
    except ApiError as error:
        return error.status, error.code
    return None


def events(data):
    """The (id, event) pairs that are complete, as an SSE parser sees them: one ends with a blank line."""
    complete = data.split(b"\n\n")[:-1]
    return [(int(re.match(rb"id: (\d+)\ndata: ", event)[1]), event) for event in complete]


@pytest.mark.parametrize("chat", [True, False])
@pytest.mark.parametrize("window", [1024, 15])
def test_cut_at_every_byte(chat, window):
    """Whatever a client got before its connection broke, with the rest it has every byte of every event once."""

    def check(case):
        case.deliver(NON_ASCII.encode()[:7])
        case.deliver(NON_ASCII.encode()[7:], FinishReason.LENGTH)
        case.reply.leave(case.writer)
        whole = case.written()
        assert [event[1] for event in events(whole)][-1].endswith(b"data: [DONE]")
        for cut in range(len(whole) + 1):
            got = events(whole[:cut])
            rest = events(case.resume(got[-1][0] if got else 0))
            assert got + rest == events(whole)

    with_case(check, chat=chat, window=window, include_usage=True)


TOKENS = st.text("ab\u00e9字🐝E", max_size=12).map(str.encode)
CUTS = st.lists(st.integers(0, 10_000), min_size=1, max_size=4)


@given(st.lists(TOKENS, min_size=1, max_size=6), st.sampled_from(FinishReason), st.booleans(), st.booleans(), CUTS)
def test_cut_in_the_middle_of_generation(drains, reason, chat, extras, cuts):
    """However often a connection breaks while tokens come, the events that a client got are those of one stream."""

    async def run():
        options = {"chat": chat, "include_timing": extras, "include_usage": extras, "logprobs": extras, "stops": ["EE"]}
        undisturbed, case = Case(**options), Case(**options)
        got, writer = [], case.writer
        for number, data in enumerate(drains):
            end = reason if number == len(drains) - 1 else 0
            for each in (undisturbed, case):
                if not each.reply.finished:
                    each.deliver(data, end)
            sent = b"".join(writer.written)
            got += events(sent[: cuts[number % len(cuts)] % (len(sent) + 1)])
            case.reply.leave(writer)
            writer = RecordingWriter()
            assert case.reply.has_more(got[-1][0] if got else 0) or case.reply.finished
            case.reply.attach(writer, got[-1][0] if got else 0)
        got += events(b"".join(writer.written))
        assert got == events(undisturbed.written())
        ids = [event_id for event_id, _ in got]
        assert ids == sorted(set(ids))

    asyncio.run(run())


@given(st.lists(TOKENS, max_size=6), st.integers(1, 12))
def test_window_is_bounded_and_exact(drains, window):
    """As many tokens as the window has can be had again, and what is older is refused by name, never left out."""

    async def run():
        case = Case(window=window)
        for data in drains:
            case.deliver(data)
        assert len(case.frames._window) <= window
        whole, last = events(case.written()), case.frames.last_id
        for last_id in range(last + 1):
            if refusal(case.reply.has_more, last_id):
                assert refusal(case.reply.has_more, last_id) == (410, "replay_window_passed")
                assert last_id < last - window + 1
            else:
                assert events(case.frames.since(last_id)) == [event for event in whole if event[0] > last_id]

    asyncio.run(run())


def test_logprobs_are_written_again():
    """Byte for byte, as everything else."""

    def check(case):
        case.deliver("aéb".encode(), FinishReason.LENGTH)
        whole = events(case.written())
        assert [event.count(b'"logprob"') for _, event in whole] == [1, 2, 1, 0]
        assert events(case.resume(0)) == whole

    with_case(check, logprobs=True)


def test_id_counts_tokens():
    """Those without text too; what comes at the end without a token counts on by one, so that no id comes twice."""

    def check(case):
        case.deliver("a🐝b".encode())
        case.deliver(b"", FinishReason.ABORT)
        ids = [event_id for event_id, _ in events(case.written())]
        assert ids == [1, 5, 6, 7, 8]

    with_case(check)


def test_every_frame_is_as_without_ids_but_for_the_id():
    """The id is a line of its own before the data; nothing else changes."""

    def check(case):
        case.deliver(b"ab", FinishReason.LENGTH)
        plain = sse.Frames(kind="k", request_id="i", created=0, model="m", chat=True, usage=False)
        wanted = [plain.text("a"), plain.last("b", "length"), sse.DONE]
        assert case.written() == b"".join(b"id: %d\n%b" % (n, frame) for n, frame in enumerate(wanted, start=1))

    with_case(check)


def test_client_that_leaves_may_come_back():
    """Its tokens wait; when it comes back they go to the new connection, from where the old one had them."""

    def check(case):
        case.deliver(b"ab")
        case.reply.on_closed()
        assert case.reply.stream.calls == ["pause"]
        assert case.reply.done.done()
        assert case.streams.find(OWNER, "i") is case.streams.find(OWNER, "request") is case.reply
        writer = RecordingWriter()
        case.reply.attach(writer, 1)
        assert [event_id for event_id, _ in events(writer.written[0])] == [2]
        assert not case.reply.done.done()
        case.reply.on_resume()
        case.deliver(b"c", FinishReason.LENGTH)
        assert [event_id for event_id, _ in events(writer.written[1])] == [3, 4]
        assert case.reply.done.done()
        assert case.reply.stream.calls == ["pause", "resume"]

    with_case(check)


def test_newest_connection_takes_over():
    """The older one is dropped and its response is over; what it still does changes nothing."""

    def check(case):
        case.writer.open(case.reply)
        case.deliver(b"ab")
        old, newer = case.reply.done, RecordingWriter()
        case.reply.attach(newer, 0)
        assert case.writer.aborted
        assert case.writer.listener is None
        assert old.done()
        assert not case.reply.done.done()
        assert case.reply.leave(case.writer) is False
        assert case.reply.stream.calls == []
        case.deliver(b"c")
        assert [len(events(data)) for data in newer.written] == [2, 1]
        assert len(case.writer.written) == 1

    with_case(check)


class FullWriter(RecordingWriter):
    """A writer whose socket is full as soon as the head of its response is on its way."""

    def open(self, listener, *, direct=False):
        """Say so."""
        super().open(listener, direct=direct)
        self.paused = True
        listener.on_pause()


def test_replay_that_fills_the_socket_leaves_the_stream_paused():
    """Tokens go on waiting in the ring until the client has read what it missed; then they come."""

    async def run():
        case, writer, sent = Case(), FullWriter(), []

        async def send(message):
            sent.append(message["type"])

        case.deliver(b"ab")
        case.reply.on_closed()
        task = asyncio.ensure_future(Resumption(case.reply, 0, writer, case.watch)({}, None, send))
        while writer.listener is None:  # noqa: ASYNC110 - nothing but the task has to run
            await asyncio.sleep(0)
        assert case.reply.stream.calls == ["pause", "pause"]
        assert case.reply in case.watch._open
        case.reply.on_resume()
        case.deliver(b"c", FinishReason.LENGTH)
        await task
        assert sent == ["http.response.start", "http.response.body"]
        assert [event_id for event_id, _ in events(b"".join(writer.written))] == [1, 2, 3, 4]
        assert case.watch._open == {case.streams}

    asyncio.run(run())


class GoneWriter(RecordingWriter):
    """A writer whose client has left before the head of its response was on its way."""

    def open(self, listener, *, direct=False):
        """Say so."""
        super().open(listener, direct=direct)
        self.closed = True
        listener.on_closed()


def test_client_that_is_gone_when_its_response_begins():
    """Its stream goes on waiting: what came now would be lost."""

    async def run():
        case = Case()

        async def send(message):
            assert message["type"].startswith("http.response")

        case.deliver(b"ab")
        case.reply.on_closed()
        await Resumption(case.reply, 0, GoneWriter(), case.watch)({}, None, send)
        assert case.reply.stream.calls == ["pause", "pause"]
        assert case.watch._open == {case.streams}

    asyncio.run(run())


def test_connection_that_is_taken_over_before_it_began():
    """The older of two that come back at once never gets to write; the newer one is not disturbed by its end."""

    async def run():
        case, older, newer = Case(), RecordingWriter(), RecordingWriter()
        begun, go_on = asyncio.Event(), asyncio.Event()

        async def send(message):
            assert message["type"].startswith("http.response")
            begun.set()
            await go_on.wait()

        case.deliver(b"ab")
        case.reply.on_closed()
        task = asyncio.ensure_future(Resumption(case.reply, 0, older, case.watch)({}, None, send))
        await begun.wait()
        case.reply.attach(newer, 0)
        case.watch.add(case.reply)
        go_on.set()
        await task
        assert older.aborted
        assert older.listener is None
        assert case.reply in case.watch._open
        case.deliver(b"c")
        assert [len(events(data)) for data in newer.written] == [2, 1]
        assert case.reply.stream.calls == ["pause"]

    asyncio.run(run())


def test_what_ends_without_a_connection_is_told_later():
    """The engine may die while nobody listens; who comes back is told."""

    def check(case):
        case.deliver(b"a")
        case.reply.on_closed()
        case.deliver(b"b")
        case.reply.fail(ApiError(503, "Gone.", code="engine_died"))
        assert len(case.writer.written) == 1
        token, error, done = [event for _, event in events(case.resume(1))]
        assert b'"content":"b"' in token
        assert json.loads(error.partition(b"data: ")[2])["error"]["code"] == "engine_died"
        assert done.endswith(b"[DONE]")
        assert case.reply.done.done()
        assert not case.reply.has_more(4)

    with_case(check)


def test_id_that_was_never_sent_is_refused():
    """A client that says so speaks of another stream."""

    def check(case):
        case.deliver(b"ab")
        assert case.reply.has_more(2)
        assert refusal(case.reply.has_more, 3) == (400, "invalid_last_event_id")

    with_case(check)


def gone(case, owner, name):
    """Whether the owner's stream is not found, as a 410."""
    refused = refusal(case.streams.find, owner, name)
    assert refused in {None, (410, "stream_gone")}
    return refused is not None


def test_only_the_owner_finds_a_stream():
    """For everybody else it is unknown."""

    def check(case):
        assert not gone(case, OWNER, "i")
        assert gone(case, ("other", "chat"), "i")
        assert gone(case, ("key", "completion"), "i")
        assert gone(case, OWNER, "j")

    with_case(check)


def test_name_stands_for_the_newest_stream():
    """A request id used twice names the second stream, also when the first is forgotten."""

    async def run():
        first = Case(resume_timeout=5.0)
        second = Case(streams=first.streams)
        assert first.streams.find(OWNER, "request") is second.reply
        first.reply.on_closed()
        first.streams.look(asyncio.get_running_loop().time() + 6, 60.0)
        assert first.reply.stream.calls == ["pause", "cancel"]
        assert first.streams.find(OWNER, "request") is second.reply

    asyncio.run(run())


@pytest.mark.parametrize("finished", [False, True])
def test_stream_without_a_connection_is_forgotten_in_time(finished):
    """After the resume timeout, not before, and not while it has a connection."""

    def check(case):
        case.deliver(b"a", FinishReason.LENGTH if finished else 0)
        now = asyncio.get_running_loop().time()
        case.streams.look(now + 100, 60.0)
        assert not gone(case, OWNER, "i")
        case.reply.leave(case.writer)
        assert case.streams in case.watch._open
        case.streams.look(now + 29, 60.0)
        assert not gone(case, OWNER, "i")
        case.reply.attach(RecordingWriter(), 0)
        assert case.streams not in case.watch._open
        case.streams.look(now + 100, 60.0)
        assert not gone(case, OWNER, "i")
        case.reply.leave(case.reply._writer)
        case.streams.look(now + 31, 60.0)
        assert gone(case, OWNER, "i")
        assert gone(case, OWNER, "request")
        assert case.streams not in case.watch._open
        assert case.reply.stream.calls[-1] == "cancel"

    with_case(check)


def test_ended_streams_are_bounded():
    """The oldest ones go first, and those that have not ended are not counted."""

    async def run():
        first = Case(max_ended=2)
        cases = [first, *(Case(streams=first.streams) for _ in range(4))]
        for number, case in enumerate(cases):
            first.streams.add(case.reply, OWNER, f"{number}")
            case.deliver(b"a", FinishReason.LENGTH if number else 0)
            case.reply.leave(case.writer)
        assert [gone(first, OWNER, f"{number}") for number in range(5)] == [False, True, True, False, False]

    asyncio.run(run())


def test_slow_reader_of_a_resumable_stream():
    """It ends as any other, and whoever comes back is told why."""

    def check(case):
        case.deliver(b"a")
        case.reply.on_pause()
        case.reply.look(asyncio.get_running_loop().time() + 61, 60.0)
        assert case.reply.stream.calls == ["pause", "cancel"]
        case.reply.leave(case.writer)
        error, done = [event for _, event in events(case.resume(1))]
        assert json.loads(error.partition(b"data: ")[2])["error"]["code"] == "slow_reader"
        assert done.endswith(b"[DONE]")

    with_case(check)


@pytest.mark.parametrize(
    ("accept", "option", "resumable"),
    [
        ([], None, False),
        (["*/*"], None, False),
        (["application/json"], None, False),
        (["text/event-stream"], None, True),
        (["application/json, Text/Event-Stream;q=0.9"], None, True),
        (["*/*", "text/event-stream"], None, True),
        (["text/event-stream"], False, False),
        (["*/*"], True, True),
    ],
)
def test_which_clients_know_ids(accept, option, resumable):
    """Those that say so, and those that accept event streams by name."""
    assert is_resumable(StreamOptions(resumable=option), accept) is resumable


@pytest.mark.parametrize("given", ["", "x", "-1", "1.5", " 1", "٣", "9" * 19])
def test_last_event_id_must_be_a_number(given):
    """Anything else is refused."""
    assert refusal(read_last_event_id, given) == (400, "invalid_last_event_id")


def test_last_event_id():
    """A number, perhaps with zeros before it."""
    assert list(map(read_last_event_id, ["0", "12", "007"])) == [0, 12, 7]


def test_ids_of_a_stream_with_every_option_are_ascending():
    """Timing, usage in every chunk and at the end, a stop string: one id each, replayed as they were."""

    def check(case):
        for data in (b"ab", b"c", b"ENDx"):
            case.deliver(data)
        whole = events(case.written())
        ids = [event_id for event_id, _ in whole]
        assert all(a < b for a, b in itertools.pairwise(ids))
        assert events(case.frames.since(0)) == whole

    with_case(check, stops=["END"], include_timing=True, continuous_usage_stats=True, include_usage=True)
