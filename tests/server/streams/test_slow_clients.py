"""Replies whose client leaves, stops reading or hears nothing for long, and the watch that looks at them."""

import asyncio
import weakref

import pytest

from rbee.messages import FinishReason
from rbee.server.streams.live import KEEP_ALIVE_SILENCE, ReplyWatch
from tests.server.streams.streams_parts import PATIENCE, Moment, moment_of
from tests.server.streams.streams_parts import StreamedCase as Case

pytestmark = pytest.mark.anyio


async def test_client_that_leaves_cancels():
    """Nobody is there to read an end."""
    case = Case()
    case.reply.on_closed()
    assert case.calls == ["cancel"]
    assert case.reply.done.done()
    assert case.writer.written == []


async def test_slow_socket_pauses_the_ring():
    """Tokens wait in the ring while the socket is full."""
    case = Case()
    case.reply.on_pause()
    case.reply.on_resume()
    assert case.calls == ["pause", "resume"]


async def test_keep_alive_comes_after_silence_only():
    """15 s after the last write, not before, not into a full socket, and not after the end."""
    case = Case()
    written = moment_of(lambda: case.deliver("a"))
    case.reply.check(written.before(KEEP_ALIVE_SILENCE), PATIENCE)
    assert len(case.writer.written) == 1
    case.reply.on_pause()
    case.reply.check(written.after(KEEP_ALIVE_SILENCE), PATIENCE)
    assert len(case.writer.written) == 1
    case.reply.on_resume()
    case.reply.check(written.after(KEEP_ALIVE_SILENCE), PATIENCE)
    assert case.writer.written[1:] == [b": keep-alive\n"]
    written = moment_of(lambda: case.deliver("b", FinishReason.LENGTH))
    case.reply.check(written.after(3 * KEEP_ALIVE_SILENCE), PATIENCE)
    assert len(case.writer.written) == 3


async def test_client_that_reads_too_slowly_is_told_and_then_dropped():
    """After the timeout without a break: the engine is told, an error event, [DONE]; after it again: no connection."""
    case = Case()
    case.deliver("a")
    paused = moment_of(case.reply.on_pause)
    case.reply.check(paused.before(PATIENCE), PATIENCE)
    assert case.chunks() == [("a", None)]
    told = Moment(paused.after(PATIENCE), paused.after(PATIENCE))
    case.reply.check(told.latest, PATIENCE)
    assert case.chunks() == [("a", None), "slow_reader", "[DONE]"]
    assert "--slow-reader-timeout" in case.events()[1]["error"]["message"]
    assert case.calls == ["pause", "cancel"]
    assert case.reply.done.done()
    aborted = []
    for now in (told.before(PATIENCE), told.after(PATIENCE)):
        case.reply.check(now, PATIENCE)
        aborted.append(case.writer.aborted)
    assert aborted == [False, True]
    assert len(case.writer.written) == 2


async def test_client_that_reads_now_and_then_is_not_given_up():
    """Only a socket that takes nothing without a break counts."""
    case = Case()
    for _ in range(3):
        paused = moment_of(case.reply.on_pause)
        case.reply.check(paused.before(PATIENCE), PATIENCE)
        case.reply.on_resume()
        case.reply.check(paused.after(PATIENCE), PATIENCE)
    assert not case.reply.done.done()


async def test_client_that_does_not_take_the_end_is_dropped():
    """An answer that is complete is not told to be an error; its connection does not stay for ever either."""
    case = Case()
    case.deliver("a", FinishReason.LENGTH)
    paused = moment_of(case.reply.on_pause)
    case.reply.check(paused.after(PATIENCE), PATIENCE)
    assert case.chunks() == [("a", "length"), "[DONE]"]
    assert case.writer.aborted


class Watched:
    """What a ReplyWatch looks at; says when it was looked at."""

    def __init__(self):
        self.checked = asyncio.Event()

    def check(self, now, slow_reader_timeout):
        """Note it."""
        assert now > 0
        assert slow_reader_timeout == PATIENCE
        self.checked.set()


async def test_watch_looks_at_open_streams_again_and_again():
    """One timer for all; when there is nothing left to look at, none keeps the watch alive."""
    watch = ReplyWatch(0.001, PATIENCE)
    first, second = Watched(), Watched()
    watch.add(first)
    await first.checked.wait()
    watch.add(second)
    first.checked.clear()
    await first.checked.wait()
    await second.checked.wait()
    watch.discard(second)
    watch.discard(first)
    left = weakref.ref(watch)
    del watch
    assert left() is None
