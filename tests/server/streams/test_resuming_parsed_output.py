"""Resuming a stream whose output is parsed: several events may come of one token, and none of them is lost."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rbee.messages import FinishReason
from tests.fakes import RecordingWriter
from tests.server.streams.streams_parts import ResumableCase, numbered_events, refusal
from tests.server.streams.tagged_output import PLAN, SPECIAL, WordTokens

pytestmark = pytest.mark.anyio

WORDS = ["a<think>b</think>c<tool_call>f{}", "</tool_call>", "<tool_call>g{", '"x":1', "}</tool_call>d<th", "e"]


def make_case(words, **options):
    """A stream whose tokens are these words."""
    return ResumableCase(plan=PLAN, new_detokenizer=lambda: WordTokens(words), **options)


async def test_ids_count_on_within_a_token():
    """Several events of one token have ids of their own; those behind are larger still, until the tokens are more."""
    case = make_case(["a<think>b</think>c", "d", *[SPECIAL] * 4, "e"])
    for number in range(7):
        case.deliver(bytes([number]))
    assert [event_id for event_id, _ in numbered_events(case.written())] == [1, 2, 3, 4, 7]


@pytest.mark.parametrize("window", [1024, 6])
async def test_cut_at_every_byte(window):
    """Also between two events of one token: with the rest a client has every event once."""
    case = make_case(WORDS, window=window, include_usage=True)
    case.deliver(bytes(range(len(WORDS))), FinishReason.STOP)
    case.reply.leave(case.writer)
    whole = case.written()
    assert len(numbered_events(whole)) > 2 * len(WORDS)
    for cut in range(len(whole) + 1):
        got = numbered_events(whole[:cut])
        last_id = got[-1][0] if got else 0
        if last_id < case.reply.events.forgotten_id:
            assert window == 6
            assert refusal(case.reply.check_replay, last_id) == (410, "replay_window_passed")
        else:
            assert got + numbered_events(case.resume(last_id)) == numbered_events(whole)


FRAGMENTS = ["<think>", "</think>", "<tool_call>", "</tool_call>", "f{", "}", "<", "a", "b<think>c", SPECIAL]


@given(
    words=st.lists(st.sampled_from(FRAGMENTS), min_size=1, max_size=10),
    ends=st.lists(st.integers(0, 10), max_size=4),
    reason=st.sampled_from(FinishReason),
    logprobs=st.booleans(),
    cuts=st.lists(st.integers(0, 10_000), min_size=1, max_size=4),
)
async def test_cut_in_the_middle_of_generation(words, ends, reason, logprobs, cuts):
    """However often a connection breaks while tokens come, the events that a client got are those of one stream."""
    undisturbed, case = (make_case(words, logprobs=logprobs, include_usage=True) for _ in range(2))
    got, writer = [], case.writer
    batches = sorted({0, len(words), *(end for end in ends if end < len(words))})
    for number, (start, end) in enumerate(itertools.pairwise(batches)):
        for each in (undisturbed, case):
            each.deliver(bytes(range(start, end)), reason if end == len(words) else 0)
        sent = b"".join(writer.written)
        got += numbered_events(sent[: cuts[number % len(cuts)] % (len(sent) + 1)])
        case.reply.leave(writer)
        writer = RecordingWriter()
        case.reply.attach(writer, got[-1][0] if got else 0)
    got += numbered_events(b"".join(writer.written))
    assert got == numbered_events(undisturbed.written())
    ids = [event_id for event_id, _ in got]
    assert ids == sorted(set(ids))
