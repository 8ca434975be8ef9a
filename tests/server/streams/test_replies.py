"""From pieces to frames: one frame per piece, and exactly one end."""

import asyncio
import functools
import json

import pytest

from rbee.messages import FinishReason
from rbee.models import synthetic
from rbee.sampling_params import SamplingParams
from rbee.server.errors import ApiError
from rbee.server.protocols.openai import frames as sse
from rbee.server.protocols.openai.logprobs import TokenRecords, completion_logprobs
from rbee.server.protocols.openai.schemas import StreamOptions
from rbee.server.streams.choices import AnnotatedChoiceSink, ChoiceSink, TokenText
from rbee.server.streams.replies import KEEP_ALIVE_SILENCE, CollectedReply, StreamedReply, StreamWatch, TokenStreams
from rbee.server.text.detokenizer import detokenizers
from rbee.server.text.stop_strings import StopStrings
from tests.batches import batch, record_batch, scored
from tests.fakes import RecordingStream, RecordingWriter

PATIENCE = 60.0  # seconds that a client may read nothing
NEW_DETOKENIZER = detokenizers(synthetic.tokenizer())


def make_choices(reply, number, stops=(), stop_token_ids=()):
    """The sinks of a reply, submitted nowhere; a token is a byte."""
    sinks = []
    for index in range(number):
        text = TokenText(NEW_DETOKENIZER(), StopStrings(stops) if stops else None, stop_token_ids)
        sink = ChoiceSink(index, reply, text)
        sink.stream = RecordingStream()
        sinks.append(sink)
    reply.stream = TokenStreams(sink.stream for sink in sinks)
    return sinks


class Case:
    """A streamed reply with everything around it; made inside a running loop."""

    def __init__(self, *, n=1, chat=False, stops=(), stop_token_ids=(), **options):
        self.writer = RecordingWriter()
        frames = [
            sse.Frames(kind="k", request_id="i", created=0, model="m", chat=chat, usage=False, index=index)
            for index in range(n)
        ]
        self.reply = StreamedReply(self.writer, frames, StreamOptions(**options), 3)
        self.choices = make_choices(self.reply, n, stops, stop_token_ids)

    @property
    def calls(self):
        """What the engine was told of each choice; of the only one, if there is one."""
        calls = [choice.stream.calls for choice in self.choices]
        return calls[0] if len(calls) == 1 else calls

    def deliver(self, text, reason=0, cached_tokens=0, *, index=0):
        """Tokens that spell `text`, with commit times 1, 2, 3 ..."""
        data = text if isinstance(text, bytes) else text.encode()
        self.choices[index].deliver(batch(data, reason, cached_tokens))

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
        assert case.calls == []

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


def test_stop_string_that_the_end_completes():
    """A replacement character may be one: it counts, but not for more than an error."""

    def check(case):
        case.deliver("a🐝".encode()[:-1], FinishReason.LENGTH)
        assert case.chunks() == [("a", None), ("", "stop"), "[DONE]"]

    def check_error(case):
        case.deliver("a🐝".encode()[:-1], FinishReason.ERROR)
        assert case.chunks() == [("a", None), "engine_error", "[DONE]"]

    with_case(check, stops=["\ufffd"])
    with_case(check_error, stops=["\ufffd"])


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
        assert case.calls == ["cancel"]
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
        (FinishReason.SLOW_READER, "slow_reader"),
    ],
)
def test_end_by_the_engine_is_an_error_event(reason, code):
    """The tokens before it are delivered, then the error, then [DONE]."""

    def check(case):
        case.deliver("a", reason)
        assert case.chunks() == [("a", None), code, "[DONE]"]

    with_case(check)


def test_deadline_after_the_first_token_is_an_ordinary_end():
    """What there is counts, also if it shows nothing yet; the reason is a word of ours."""

    def check(case):
        case.deliver("a")
        case.deliver("🐝".encode()[:1], FinishReason.DEADLINE)
        assert case.chunks() == [("a", None), ("\ufffd", "deadline"), "[DONE]"]

    with_case(check)


def test_deadline_before_the_first_token_is_an_error():
    """There is nothing to show."""

    def check(case):
        case.deliver("", FinishReason.DEADLINE)
        assert case.chunks() == ["REQUEST_TIMEOUT", "[DONE]"]
        assert case.reply.done.done()

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


def test_usage_at_the_end_says_what_was_cached():
    """It comes with the finish; after a stop string, which ends the stream before, nobody has said so."""

    def check(case):
        case.deliver("a")
        case.deliver("b", FinishReason.LENGTH, 2)
        assert case.events()[-2]["usage"] == {
            "prompt_tokens": 3,
            "completion_tokens": 2,
            "total_tokens": 5,
            "prompt_tokens_details": {"cached_tokens": 2},
        }

    def check_stopped(case):
        case.deliver("aE")
        assert case.events()[-2]["usage"] == {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}

    with_case(check, include_usage=True)
    with_case(check_stopped, include_usage=True, stops=["E"])


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
        assert case.calls == ["cancel"]
        assert case.reply.done.done()
        assert case.writer.written == []

    with_case(check)


def test_slow_socket_pauses_the_ring():
    """Tokens wait in the ring while the socket is full."""

    def check(case):
        case.reply.on_pause()
        case.reply.on_resume()
        assert case.calls == ["pause", "resume"]

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
        assert case.calls == ["pause", "cancel"]
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


def test_logprobs_are_in_the_chunks_that_show_their_tokens():
    """A chunk that shows no token has none."""

    async def run():
        writer = RecordingWriter()
        frames = sse.Frames(kind="k", request_id="i", created=0, model="m", chat=False, usage=False)
        shown = functools.partial(completion_logprobs, token_bytes=NEW_DETOKENIZER.token_bytes)
        reply = StreamedReply(writer, [frames], StreamOptions(), 3, shown)
        text = TokenText(NEW_DETOKENIZER(), StopStrings(["E"]))
        records = TokenRecords(SamplingParams(max_tokens=9, num_logprobs=0), 3)
        choice = AnnotatedChoiceSink(0, reply, text, records, logprobs=True)
        choice.stream = reply.stream = RecordingStream()
        choice.deliver(record_batch([*scored(97, -0.5), *scored(ord("E"), -0.25)]))
        first, last, done = b"".join(writer.written).split(b"\n\n")[:-1]
        [choice] = json.loads(first.removeprefix(b"data: "))["choices"]
        assert choice["logprobs"] == {
            "tokens": ["a"],
            "token_logprobs": [-0.5],
            "top_logprobs": [{"a": -0.5}],
            "text_offset": [0],
        }
        assert b"logprobs" not in last
        assert done == b"data: [DONE]"

    asyncio.run(run())


def choices_of(case):
    """What each chunk says: (index, delta, finish_reason); what is no chunk of a choice as it is."""
    shown = []
    for event in case.events():
        if event == "[DONE]" or not event.get("choices"):
            shown.append(event)
        else:
            [choice] = event["choices"]
            shown.append((choice["index"], choice["delta"], choice["finish_reason"]))
    return shown


def test_choices_share_one_stream():
    """Their chunks come as their tokens do, the role with the first of each; one usage and one [DONE] come last."""

    def check(case):
        case.deliver("a", index=1)
        case.deliver("bc", index=0)
        case.deliver("d", FinishReason.LENGTH, 2, index=1)
        assert not case.reply.done.done()
        case.deliver("e", FinishReason.STOP, 1, index=0)
        counts = {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}
        *chunks, usage, done = choices_of(case)
        assert chunks == [
            (1, {"role": "assistant", "content": "a"}, None),
            (0, {"role": "assistant", "content": "b"}, None),
            (0, {"content": "c"}, None),
            (1, {"content": "d"}, "length"),
            (0, {"content": "e"}, "stop"),
        ]
        assert usage["usage"] == counts | {"prompt_tokens_details": {"cached_tokens": 1}}
        assert done == "[DONE]"
        assert case.reply.done.done()
        assert case.calls == [[], []]

    with_case(check, n=2, chat=True, include_usage=True)


def test_stop_string_of_one_choice_leaves_the_others_alone():
    """Only its own sequence is ended."""

    def check(case):
        case.deliver("xE", index=0)
        case.deliver("y", index=1)
        case.deliver("z", FinishReason.LENGTH, index=1)
        assert case.chunks() == [("x", None), ("", "stop"), ("y", None), ("z", "length"), "[DONE]"]
        assert case.calls == [["cancel"], []]

    with_case(check, n=2, stops=["E"])


def test_error_of_one_choice_ends_all():
    """One error event, and nothing after it; the engine is told that the others are not wanted any more."""

    def check(case):
        case.deliver("a", index=0)
        case.deliver("b", FinishReason.LENGTH, index=1)
        case.deliver("c", FinishReason.ERROR, index=2)
        assert case.chunks() == [("a", None), ("b", "length"), ("c", None), "engine_error", "[DONE]"]
        assert case.calls == [["cancel"]] * 3
        assert case.reply.done.done()

    with_case(check, n=3)


def test_failure_of_one_choice_ends_all():
    """The engine's death is told once: what the first choice hears ends the others too."""

    def check(case):
        case.deliver("a", index=1)
        case.choices[0].fail(ApiError(503, "Gone.", code="engine_died"))
        assert case.chunks() == [("a", None), "engine_died", "[DONE]"]
        assert case.calls == [["cancel"]] * 2

    with_case(check, n=2)


def test_deadline_of_choices():
    """One that got no token is empty if another one got any; if none did, the whole is an error."""

    def check(case):
        case.deliver("a", FinishReason.LENGTH, index=0)
        case.deliver("", FinishReason.DEADLINE, index=1)
        assert case.chunks() == [("a", "length"), ("", "deadline"), "[DONE]"]

    def check_none(case):
        case.deliver("", FinishReason.DEADLINE, index=1)
        assert case.chunks() == ["REQUEST_TIMEOUT", "[DONE]"]
        assert case.calls == [["cancel"]] * 2

    with_case(check, n=2)
    with_case(check_none, n=2)


def test_slow_socket_pauses_all_choices():
    """And they go on together; a client that leaves cancels all, one that never reads is told once."""

    def check(case):
        case.reply.on_pause()
        case.reply.on_resume()
        assert case.calls == [["pause", "resume"]] * 2
        case.reply.on_closed()
        assert case.calls == [["pause", "resume", "cancel"]] * 2

    def check_slow(case):
        case.reply.on_pause()
        case.reply.look(asyncio.get_running_loop().time() + PATIENCE, PATIENCE)
        assert case.chunks() == ["slow_reader", "[DONE]"]
        assert case.calls == [["pause", "cancel"]] * 2

    with_case(check, n=2)
    with_case(check_slow, n=2)


def test_usage_in_the_chunks_of_choices():
    """Each chunk counts the tokens of its own choice."""

    def check(case):
        case.deliver("ab", index=0)
        case.deliver("c", index=1)
        assert [event["usage"]["completion_tokens"] for event in case.events()] == [1, 2, 1]
        assert [event["timing"]["committed_ns"] for event in case.events()] == [1, 2, 1]

    with_case(check, n=2, continuous_usage_stats=True, include_timing=True)


def test_collected_reply():
    """The whole text, with what was withheld at the end; a stop string ends it early."""

    async def run():
        plain, stopped = CollectedReply(), CollectedReply()
        [choice] = make_choices(plain, 1)
        choice.deliver(batch("a🐝".encode()[:-1], FinishReason.LENGTH, 2))
        assert (plain.choices[0].text, plain.choices[0].finish_reason) == ("a\ufffd", "length")
        assert (plain.ends.completion_tokens, plain.ends.cached_tokens) == (4, 2)
        assert plain.error is None
        [choice] = make_choices(stopped, 1, ["END"])
        choice.deliver(batch(b"abENDxx"))
        assert (stopped.choices[0].text, stopped.choices[0].finish_reason) == ("ab", "stop")
        assert (stopped.ends.completion_tokens, stopped.ends.cached_tokens) == (5, None)
        assert choice.stream.calls == ["cancel"]
        assert stopped.done.done()

    asyncio.run(run())


def test_collected_reply_of_choices():
    """They are in their order, however they end; it is done when all are, and what was cached is the first one's."""

    async def run():
        reply = CollectedReply(2)
        first, second = make_choices(reply, 2)
        first.deliver(batch(b"a", FinishReason.LENGTH, 1))
        assert not reply.done.done()
        second.deliver(batch(b"xy", FinishReason.DEADLINE, 3))
        assert [(choice.text, choice.finish_reason) for choice in reply.choices] == [
            ("a", "length"),
            ("xy", "deadline"),
        ]
        assert (reply.ends.completion_tokens, reply.ends.cached_tokens) == (3, 1)
        assert reply.done.done()

    asyncio.run(run())


def test_collected_reply_that_fails():
    """The error is there for the response, and the engine is told that nothing of the rest is wanted."""

    async def run():
        reply = CollectedReply(2)
        choices = make_choices(reply, 2)
        choices[1].deliver(batch([65], FinishReason.ERROR))
        assert reply.error.code == "engine_error"
        assert reply.done.done()
        assert [choice.stream.calls for choice in choices] == [["cancel"]] * 2
        other = CollectedReply()
        make_choices(other, 1)[0].fail(ApiError(503, "Gone.", code="engine_died"))
        assert other.error.code == "engine_died"
        assert other.done.done()

    asyncio.run(run())
