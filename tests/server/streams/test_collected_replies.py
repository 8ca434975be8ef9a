"""Replies that are not streamed: the whole text, in order, with its one end."""

import pytest

from rbee.messages import FinishReason
from rbee.server.errors import Refusal, RefusalKind
from tests.batches import batch
from tests.server.streams.streams_parts import calls_of, make_collected

pytestmark = pytest.mark.anyio


async def test_collected_reply():
    """The whole text, with what was withheld at the end; a stop string ends it early."""
    plain, [choice] = make_collected(1)
    choice.deliver(batch("a🐝".encode()[:-1], FinishReason.LENGTH, 2))
    assert (plain.choices[0].text, plain.choices[0].reason) == ("a\ufffd", FinishReason.LENGTH)
    assert (plain.outcome.completion_tokens, plain.outcome.cached_tokens) == (4, 2)
    assert plain.refusal is None
    stopped, [choice] = make_collected(1, ["END"])
    choice.deliver(batch(b"abENDxx"))
    assert (stopped.choices[0].text, stopped.choices[0].reason) == ("ab", FinishReason.STOP)
    assert (stopped.outcome.completion_tokens, stopped.outcome.cached_tokens) == (5, None)
    assert calls_of(choice) == ["cancel: stop"]
    assert stopped.done.done()


async def test_collected_reply_of_choices():
    """They are in their order, however they end; it is done when all are, and what was cached is the first one's."""
    reply, [first, second] = make_collected(2)
    first.deliver(batch(b"a", FinishReason.LENGTH, 1))
    assert not reply.done.done()
    second.deliver(batch(b"xy", FinishReason.DEADLINE, 3))
    assert [(choice.text, choice.reason) for choice in reply.choices] == [
        ("a", FinishReason.LENGTH),
        ("xy", FinishReason.DEADLINE),
    ]
    assert (reply.outcome.completion_tokens, reply.outcome.cached_tokens) == (3, 1)
    assert reply.done.done()


async def test_collected_reply_that_fails():
    """The error is there for the response, and the engine is told that nothing of the rest is wanted."""
    reply, choices = make_collected(2)
    choices[1].deliver(batch([65], FinishReason.ERROR))
    assert reply.refusal.code == "engine_error"
    assert reply.done.done()
    assert [calls_of(choice) for choice in choices] == [["cancel"]] * 2
    other, [choice] = make_collected(1)
    choice.fail(Refusal(RefusalKind.UNAVAILABLE, "Gone.", code="engine_died"))
    assert other.refusal.code == "engine_died"
    assert other.done.done()
