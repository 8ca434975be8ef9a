"""From tokens to frames: one frame per token, and exactly one end."""

import asyncio
import json

import pytest
from fakes import RecordingStream, RecordingWriter

from rbee.messages import FinishReason
from rbee.models import synthetic
from rbee.server import sse
from rbee.server.detokenizer import detokenizers
from rbee.server.errors import ApiError
from rbee.server.replies import KEEP_ALIVE_SILENCE, CollectedReply, StreamedReply, StreamWatch, TokenText
from rbee.server.schemas import StreamOptions
from rbee.server.stop_strings import StopStrings

PATIENCE = 60.0  # seconds that a client may read nothing
NEW_DETOKENIZER = detokenizers(synthetic.tokenizer())


def token_text(stops=(), stop_token_ids=()):
    """The text of a synthetic sequence."""
    return TokenText(NEW_DETOKENIZER(), StopStrings(stops) if stops else None, stop_token_ids)


class Case:
    """A streamed reply with everything around it; made inside a running loop."""

    def __init__(self, *, stops=(), stop_token_ids=(), **options):
        self.writer = RecordingWriter()
        frames = sse.Frames(kind="k", request_id="i", created=0, model="m", chat=False, usage=False)
        text = token_text(stops, stop_token_ids)
        self.reply = StreamedReply(text, self.writer, frames, StreamOptions(**options), prompt_tokens=3)
        self.reply.stream = RecordingStream()

    def deliver(self, text, reason=0):
        """Tokens that spell `text`, with commit times 1, 2, 3 ..."""
        data = text if isinstance(text, bytes) else text.encode()
        self.reply.deliver(list(data), list(range(1, len(data) + 1)), reason)

    def events(self):
        """All that was written, as data of events."""
        frames = b"".join(self.writer.written).split(b"\n\n")[:-1]
        data = [frame.removeprefix(b"data: ") for frame in frames]
        return ["[DONE]" if item == b"[DONE]" else json.loads(item) for item in data]

    def chunks(self):
        """The chunks as (text, finish_reason), errors as their code."""
        return [
            event if event == "[DONE]"
            else event["error"]["code"] if "error" in event
            else (event["choices"][0]["text"], event["choices"][0]["finish_reason"])
            for event in self.events()
        ]  # fmt: skip


def with_case(check, **options):
    """Run `check(case)` inside an event loop."""

    async def run():
        check(Case(**options))

    asyncio.run(run())


def test_a_frame_for_each_token_and_one_write_for_each_drain():
    """The finish reason rides on the last token's frame, and the stream ends with [DONE]."""

    def check(case):
        case.deliver("a")
        case.deliver("bc")
        case.deliver("d", FinishReason.LENGTH)
        assert case.chunks() == [("a", None), ("b", None), ("c", None), ("d", "length"), "[DONE]"]
        assert len(case.writer.written) == 3
        assert case.reply.done.done()
        assert case.reply.stream.calls == []

    with_case(check)


def test_token_without_text_has_no_frame():
    """An emoji of four tokens is one frame; nothing empty is written before it."""

    def check(case):
        for byte in "🐝".encode():
            case.deliver(bytes([byte]))
        assert case.chunks() == [("🐝", None)]

    with_case(check)


def test_stop_token_is_not_shown():
    """Also when its finish arrives later: the engine ends there, so its text never was part of the answer."""

    def check(case):
        case.deliver("ab.")
        case.deliver("", FinishReason.STOP)
        assert case.chunks() == [("a", None), ("b", None), ("", "stop"), "[DONE]"]

    with_case(check, stop_token_ids=[ord(".")])


def test_end_inside_a_character_shows_what_is_there():
    """The last frame carries the replacement character that an incomplete one becomes."""

    def check(case):
        case.deliver("a🐝".encode()[:-1], FinishReason.LENGTH)
        assert case.chunks() == [("a", None), ("\ufffd", "length"), "[DONE]"]

    with_case(check)


def test_stop_string_over_several_tokens():
    """Nothing of it is shown, the engine is told to stop, and what it sent meanwhile is not shown either."""

    def check(case):
        case.deliver("xE")
        case.deliver("N")
        assert case.chunks() == [("x", None)]
        case.deliver("Dzz")
        assert case.chunks() == [("x", None), ("", "stop"), "[DONE]"]
        assert case.reply.stream.calls == ["cancel"]
        assert case.reply.done.done()

    with_case(check, stops=["END"])


def test_beginning_of_a_stop_string_is_shown_when_it_is_not_one():
    """Withheld text comes with the token that decides it, or with the end."""

    def check(case):
        case.deliver("EN")
        assert case.chunks() == []
        case.deliver("x")
        case.deliver("E", FinishReason.LENGTH)
        assert case.chunks() == [("ENx", None), ("E", "length"), "[DONE]"]

    with_case(check, stops=["END"])


@pytest.mark.parametrize(
    ("reason", "code"),
    [
        (FinishReason.ABORT, "aborted"),
        (FinishReason.ERROR, "engine_error"),
        (FinishReason.DEADLINE, "deadline_exceeded"),
    ],
)
def test_end_by_the_engine_is_an_error_event(reason, code):
    """The tokens before it are delivered, then the error, then [DONE]."""

    def check(case):
        case.deliver("a", reason)
        assert case.chunks() == [("a", None), code, "[DONE]"]

    with_case(check)


def test_failure_ends_the_stream():
    """An error event with the envelope's fields, then [DONE]."""

    def check(case):
        case.deliver("a")
        case.reply.fail(ApiError(503, "Gone.", code="engine_died"))
        assert case.events()[1:] == [
            {"error": {"message": "Gone.", "type": "server_error", "param": None, "code": "engine_died"}},
            "[DONE]",
        ]
        assert case.reply.done.done()

    with_case(check)


def test_timing_and_usage_in_every_chunk():
    """Each chunk says when its own token was committed and how many there are by then."""

    def check(case):
        case.deliver("ab", FinishReason.LENGTH)
        a, b, _ = case.events()
        assert (a["timing"], b["timing"]) == ({"committed_ns": 1}, {"committed_ns": 2})
        assert (a["usage"]["completion_tokens"], b["usage"]["completion_tokens"]) == (1, 2)
        assert b["usage"]["prompt_tokens"] == 3

    with_case(check, include_timing=True, continuous_usage_stats=True)


def test_client_that_leaves_cancels():
    """Nobody is there to read an end."""

    def check(case):
        case.reply.on_closed()
        assert case.reply.stream.calls == ["cancel"]
        assert case.reply.done.done()
        assert case.writer.written == []

    with_case(check)


def test_slow_socket_pauses_the_ring():
    """Tokens wait in the ring while the socket is full."""

    def check(case):
        case.reply.on_pause()
        case.reply.on_resume()
        assert case.reply.stream.calls == ["pause", "resume"]

    with_case(check)


def test_keep_alive_comes_after_silence_only():
    """15 s after the last write, not before, not into a full socket, and not after the end."""

    def check(case):
        case.deliver("a")
        written_at = asyncio.get_running_loop().time()
        case.reply.look(written_at + KEEP_ALIVE_SILENCE - 1, PATIENCE)
        assert len(case.writer.written) == 1
        case.reply.on_pause()
        case.reply.look(written_at + KEEP_ALIVE_SILENCE + 1, PATIENCE)
        assert len(case.writer.written) == 1
        case.reply.on_resume()
        case.reply.look(written_at + KEEP_ALIVE_SILENCE + 1, PATIENCE)
        assert case.writer.written[1:] == [b": keep-alive\n\n"]
        case.deliver("b", FinishReason.LENGTH)
        case.reply.look(written_at + 3 * KEEP_ALIVE_SILENCE, PATIENCE)
        assert len(case.writer.written) == 3

    with_case(check)


def test_client_that_reads_too_slowly_is_told_and_then_dropped():
    """After the timeout without a break: the engine is told, an error event, [DONE]; after it again: no connection."""

    def check(case):
        case.deliver("a")
        case.reply.on_pause()
        paused_at = asyncio.get_running_loop().time()
        case.reply.look(paused_at + PATIENCE - 1, PATIENCE)
        assert case.chunks() == [("a", None)]
        told_at = paused_at + PATIENCE + 1
        case.reply.look(told_at, PATIENCE)
        assert case.chunks() == [("a", None), "slow_reader", "[DONE]"]
        assert "--slow-reader-timeout" in case.events()[1]["error"]["message"]
        assert case.reply.stream.calls == ["pause", "cancel"]
        assert case.reply.done.done()
        case.reply.look(told_at + PATIENCE - 1, PATIENCE)
        assert not case.writer.aborted
        case.reply.look(told_at + PATIENCE, PATIENCE)
        assert case.writer.aborted
        assert len(case.writer.written) == 2

    with_case(check)


def test_client_that_reads_now_and_then_is_not_given_up():
    """Only a socket that takes nothing without a break counts."""

    def check(case):
        for _ in range(3):
            case.reply.on_pause()
            paused_at = asyncio.get_running_loop().time()
            case.reply.look(paused_at + PATIENCE - 1, PATIENCE)
            case.reply.on_resume()
            case.reply.look(paused_at + PATIENCE + 1, PATIENCE)
        assert not case.reply.done.done()

    with_case(check)


def test_client_that_does_not_take_the_end_is_dropped():
    """An answer that is complete is not told to be an error; its connection does not stay for ever either."""

    def check(case):
        case.deliver("a", FinishReason.LENGTH)
        case.reply.on_pause()
        paused_at = asyncio.get_running_loop().time()
        case.reply.look(paused_at + PATIENCE + 1, PATIENCE)
        assert case.chunks() == [("a", "length"), "[DONE]"]
        assert case.writer.aborted

    with_case(check)


class Watched:
    """What a StreamWatch looks at; says when it was looked at."""

    def __init__(self):
        self.looked_at = asyncio.Event()

    def look(self, now, slow_reader_timeout):
        """Note it."""
        assert now > 0
        assert slow_reader_timeout == PATIENCE
        self.looked_at.set()


def test_watch_looks_at_open_streams_again_and_again():
    """One timer for all, which stops when there is nothing left to look at."""

    async def run():
        watch = StreamWatch(0.001, PATIENCE)
        first, second = Watched(), Watched()
        watch.add(first)
        async with asyncio.timeout(20):
            await first.looked_at.wait()
            watch.add(second)
            first.looked_at.clear()
            await asyncio.gather(first.looked_at.wait(), second.looked_at.wait())
        watch.discard(second)
        watch.discard(first)
        assert watch._timer is None

    asyncio.run(run())


def test_collected_reply():
    """The whole text, with what was withheld at the end; a stop string ends it early."""

    async def run():
        plain, stopped = CollectedReply(token_text()), CollectedReply(token_text(["END"]))
        plain.deliver(list("a🐝".encode()[:-1]), [1] * 4, FinishReason.LENGTH)
        assert (plain.text, plain.finish_reason, plain.completion_tokens) == ("a\ufffd", "length", 4)
        assert plain.error is None
        stopped.stream = RecordingStream()
        stopped.deliver(list(b"abENDxx"), [1] * 7, 0)
        assert (stopped.text, stopped.finish_reason, stopped.completion_tokens) == ("ab", "stop", 5)
        assert stopped.stream.calls == ["cancel"]
        assert stopped.done.done()

    asyncio.run(run())


def test_collected_reply_that_fails():
    """The error is there for the response."""

    async def run():
        reply = CollectedReply(token_text())
        reply.deliver([65], [1], FinishReason.ERROR)
        assert reply.error.code == "engine_error"
        other = CollectedReply(token_text())
        other.fail(ApiError(503, "Gone.", code="engine_died"))
        assert other.error.code == "engine_died"
        assert other.done.done()

    asyncio.run(run())
