"""From pieces to frames: one frame per piece, and exactly one end."""

import json

import pytest

from rbee.messages import FinishReason
from rbee.server.errors import Refusal, RefusalKind
from tests.batches import record_batch, scored
from tests.server.streams.streams_parts import StreamedCase as Case

pytestmark = pytest.mark.anyio


async def test_a_frame_for_each_token_and_one_write_for_each_drain():
    """The finish reason rides on the last token's frame, and the stream ends with [DONE]."""
    case = Case()
    case.deliver("a")
    case.deliver("bc")
    case.deliver("d", FinishReason.LENGTH)
    assert case.chunks() == [("a", None), ("b", None), ("c", None), ("d", "length"), "[DONE]"]
    assert len(case.writer.written) == 3
    assert case.reply.done.done()
    assert case.calls == []


async def test_token_without_text_has_no_frame():
    """A character of three tokens is one frame; nothing empty is written before it."""
    case = Case()
    for byte in "海".encode():
        case.deliver(bytes([byte]))
    assert case.chunks() == [("海", None)]


async def test_emoji_waits_for_what_follows_it():
    """It may become another one; with the next token, or the end, it is shown."""
    case = Case()
    case.deliver("a👋".encode())
    case.deliver("🏽".encode())
    assert case.chunks() == [("a", None)]
    case.deliver("!🐝".encode(), FinishReason.LENGTH)
    assert case.chunks() == [("a", None), ("👋🏽!", None), ("🐝", "length"), "[DONE]"]


async def test_stop_token_is_not_shown():
    """Also when its finish arrives later: the engine ends there, so its text never was part of the answer."""
    case = Case(stop_token_ids=[ord(".")])
    case.deliver("ab.")
    case.deliver("", FinishReason.STOP)
    assert case.chunks() == [("a", None), ("b", None), ("", "stop"), "[DONE]"]


async def test_stop_string_that_the_end_completes():
    """A replacement character may be one: it counts, but not for more than an error."""
    case = Case(stops=["�"])
    case.deliver("a🐝".encode()[:-1], FinishReason.LENGTH)
    assert case.chunks() == [("a", None), ("", "stop"), "[DONE]"]
    other = Case(stops=["�"])
    other.deliver("a🐝".encode()[:-1], FinishReason.ERROR)
    assert other.chunks() == [("a", None), "engine_error", "[DONE]"]


async def test_end_inside_a_character_shows_what_is_there():
    """The last frame carries the replacement character that an incomplete one becomes."""
    case = Case()
    case.deliver("a🐝".encode()[:-1], FinishReason.LENGTH)
    assert case.chunks() == [("a", None), ("\ufffd", "length"), "[DONE]"]


async def test_stop_string_over_several_tokens():
    """Nothing of it is shown, the engine is told to stop, and what it sent meanwhile is not shown either."""
    case = Case(stops=["END"])
    case.deliver("xE")
    case.deliver("N")
    assert case.chunks() == [("x", None)]
    case.deliver("Dzz")
    assert case.chunks() == [("x", None), ("", "stop"), "[DONE]"]
    assert case.calls == ["cancel: stop"]
    assert case.reply.done.done()


async def test_beginning_of_a_stop_string_is_shown_when_it_is_not_one():
    """Withheld text comes with the token that decides it, or with the end."""
    case = Case(stops=["END"])
    case.deliver("EN")
    assert case.chunks() == []
    case.deliver("x")
    case.deliver("E", FinishReason.LENGTH)
    assert case.chunks() == [("ENx", None), ("E", "length"), "[DONE]"]


@pytest.mark.parametrize(
    ("reason", "code"),
    [
        (FinishReason.ABORT, "aborted"),
        (FinishReason.ERROR, "engine_error"),
        (FinishReason.SLOW_READER, "slow_reader"),
    ],
)
async def test_end_by_the_engine_is_an_error_event(reason, code):
    """The tokens before it are delivered, then the error, then [DONE]."""
    case = Case()
    case.deliver("a", reason)
    assert case.chunks() == [("a", None), code, "[DONE]"]


async def test_deadline_after_the_first_token_is_an_ordinary_end():
    """What there is counts, also if it shows nothing yet; the reason is a word of ours."""
    case = Case()
    case.deliver("a")
    case.deliver("🐝".encode()[:1], FinishReason.DEADLINE)
    assert case.chunks() == [("a", None), ("\ufffd", "deadline"), "[DONE]"]


async def test_deadline_before_the_first_token_is_an_error():
    """There is nothing to show."""
    case = Case()
    case.deliver("", FinishReason.DEADLINE)
    assert case.chunks() == ["REQUEST_TIMEOUT", "[DONE]"]
    assert case.reply.done.done()


async def test_failure_ends_the_stream():
    """An error event with the envelope's fields, then [DONE]."""
    case = Case()
    case.deliver("a")
    case.reply.fail(Refusal(RefusalKind.UNAVAILABLE, "Gone.", code="engine_died"))
    assert case.events()[1:] == [
        {"error": {"message": "Gone.", "type": "server_error", "param": None, "code": "engine_died"}},
        "[DONE]",
    ]
    assert case.reply.done.done()


async def test_usage_at_the_end_says_what_was_cached():
    """It comes with the finish; after a stop string, which ends the stream before, nobody has said so."""
    case = Case(include_usage=True)
    case.deliver("a")
    case.deliver("b", FinishReason.LENGTH, 2)
    assert case.events()[-2]["usage"] == {
        "prompt_tokens": 3,
        "completion_tokens": 2,
        "total_tokens": 5,
        "prompt_tokens_details": {"cached_tokens": 2},
    }
    other = Case(include_usage=True, stops=["E"])
    other.deliver("aE")
    assert other.events()[-2]["usage"] == {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}


async def test_timing_and_usage_in_every_chunk():
    """Each chunk says when its own token was committed and how many there are by then."""
    case = Case(include_timing=True, include_usage=True, continuous_usage_stats=True)
    case.deliver("ab", FinishReason.LENGTH)
    a, b, *_ = case.events()
    assert (a["timing"], b["timing"]) == ({"committed_ns": 1}, {"committed_ns": 2})
    assert (a["usage"]["completion_tokens"], b["usage"]["completion_tokens"]) == (1, 2)
    assert b["usage"]["prompt_tokens"] == 3


async def test_logprobs_are_in_the_chunks_that_show_their_tokens():
    """A chunk that shows no token has none."""
    case = Case(logprobs=True, stops=["E"])
    case.choices[0].deliver(record_batch([*scored(97, -0.5), *scored(ord("E"), -0.25)]))
    first, last, done = case.written().split(b"\n\n")[:-1]
    [choice] = json.loads(first.removeprefix(b"data: "))["choices"]
    assert choice["logprobs"] == {
        "tokens": ["a"],
        "token_logprobs": [-0.5],
        "top_logprobs": [{"a": -0.5}],
        "text_offset": [0],
    }
    assert b"logprobs" not in last
    assert done == b"data: [DONE]"
