"""Several choices in one reply: whose chunks are whose, and which end ends what."""

import pytest

from rbee.messages import FinishReason
from rbee.server.errors import Refusal, RefusalKind
from tests.server.streams.streams_parts import PATIENCE, moment_of
from tests.server.streams.streams_parts import StreamedCase as Case

pytestmark = pytest.mark.anyio


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


async def test_choices_share_one_stream():
    """Their chunks come as their tokens do, the role with the first of each; one usage and one [DONE] come last."""
    case = Case(n=2, chat=True, include_usage=True)
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


async def test_stop_string_of_one_choice_leaves_the_others_alone():
    """Only its own sequence is ended."""
    case = Case(n=2, stops=["E"])
    case.deliver("xE", index=0)
    case.deliver("y", index=1)
    case.deliver("z", FinishReason.LENGTH, index=1)
    assert case.chunks() == [("x", None), ("", "stop"), ("y", None), ("z", "length"), "[DONE]"]
    assert case.calls == [["cancel: stop"], []]


async def test_error_of_one_choice_ends_all():
    """One error event, and nothing after it; the engine is told that the others are not wanted any more."""
    case = Case(n=3)
    case.deliver("a", index=0)
    case.deliver("b", FinishReason.LENGTH, index=1)
    case.deliver("c", FinishReason.ERROR, index=2)
    assert case.chunks() == [("a", None), ("b", "length"), ("c", None), "engine_error", "[DONE]"]
    assert case.calls == [["cancel"]] * 3
    assert case.reply.done.done()


async def test_failure_of_one_choice_ends_all():
    """The engine's death is told once: what the first choice hears ends the others too."""
    case = Case(n=2)
    case.deliver("a", index=1)
    case.choices[0].fail(Refusal(RefusalKind.UNAVAILABLE, "Gone.", code="engine_died"))
    assert case.chunks() == [("a", None), "engine_died", "[DONE]"]
    assert case.calls == [["cancel"]] * 2


async def test_deadline_of_choices():
    """One that got no token is empty if another one got any; if none did, the whole is an error."""
    case = Case(n=2)
    case.deliver("a", FinishReason.LENGTH, index=0)
    case.deliver("", FinishReason.DEADLINE, index=1)
    assert case.chunks() == [("a", "length"), ("", "deadline"), "[DONE]"]
    other = Case(n=2)
    other.deliver("", FinishReason.DEADLINE, index=1)
    assert other.chunks() == ["REQUEST_TIMEOUT", "[DONE]"]
    assert other.calls == [["cancel"]] * 2


async def test_slow_socket_pauses_all_choices():
    """And they go on together; a client that leaves cancels all, one that never reads is told once."""
    case = Case(n=2)
    case.reply.on_pause()
    case.reply.on_resume()
    assert case.calls == [["pause", "resume"]] * 2
    case.reply.on_closed()
    assert case.calls == [["pause", "resume", "cancel"]] * 2
    other = Case(n=2)
    paused = moment_of(other.reply.on_pause)
    other.reply.check(paused.after(PATIENCE), PATIENCE)
    assert other.chunks() == ["slow_reader", "[DONE]"]
    assert other.calls == [["pause", "cancel"]] * 2


async def test_usage_in_the_chunks_of_choices():
    """Each chunk counts the tokens of its own choice."""
    case = Case(n=2, include_usage=True, continuous_usage_stats=True, include_timing=True)
    case.deliver("ab", index=0)
    case.deliver("c", index=1)
    assert [event["usage"]["completion_tokens"] for event in case.events()] == [1, 2, 1]
    assert [event["timing"]["committed_ns"] for event in case.events()] == [1, 2, 1]
