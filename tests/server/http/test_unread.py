"""Bytes that wait for one connection: when it is dropped, by a clock and timers that the test moves."""

from __future__ import annotations

import asyncio
import socket

import pytest
import uvloop

from rbee.server.http.unread import UnreadBytes

TIMEOUT = 8.0  # seconds; a power of two keeps sums exact


class FakeTimer:
    """What `call_later` returns."""

    def __init__(self, due, callback):
        self.due, self.callback = due, callback

    def cancel(self):
        """Never call back."""
        self.callback = None


class Connection:
    """A transport whose buffer the test fills, under a watch with a clock that the test moves."""

    def __init__(self):
        self.now, self.waiting, self.aborted, self.streaming = 100.0, 0, False, False
        self.timers = []
        self.unread = UnreadBytes(
            self, TIMEOUT, lambda: self.streaming, clock=lambda: self.now, call_later=self.call_later
        )

    def get_write_buffer_size(self):
        """As the test has it."""
        return self.waiting

    def abort(self):
        """Note it."""
        self.aborted = True

    def call_later(self, delay, callback):
        """A timer of this clock."""
        self.timers.append(FakeTimer(self.now + delay, callback))
        return self.timers[-1]

    def write(self, number):
        """So many bytes that the socket does not take."""
        self.waiting += number
        self.unread.wrote()

    def move(self, seconds):
        """Let time pass, and call what is due on the way."""
        end = self.now + seconds
        while due := sorted((timer for timer in self.timers if timer.due <= end), key=lambda timer: timer.due):
            self.timers.remove(due[0])
            self.now = due[0].due
            if due[0].callback:
                due[0].callback()
        self.now = end

    @property
    def watched(self):
        """Whether a timer is there."""
        return any(timer.callback for timer in self.timers)


@pytest.fixture
def connection():
    """Nothing waits for it yet."""
    return Connection()


def test_client_that_takes_nothing_is_dropped(connection):
    """After the timeout, not before, whether a byte waits or many; nothing watches it then."""
    connection.write(1)
    connection.move(TIMEOUT * 0.99)
    assert not connection.aborted
    connection.move(TIMEOUT * 0.26)
    assert connection.aborted
    assert not connection.watched


def test_client_that_takes_a_little_now_and_then_is_left_alone(connection):
    """However long it takes in all; after its last byte it has the whole time again."""
    connection.write(100)
    for _ in range(50):
        connection.move(TIMEOUT * 0.9)
        connection.waiting -= 1
    connection.move(TIMEOUT * 0.7)
    assert not connection.aborted
    connection.move(TIMEOUT)
    assert connection.aborted


def test_answer_that_is_taken_is_watched_no_longer(connection):
    """The next one is, from its own beginning, however much larger it is than what waited before."""
    connection.write(10)
    connection.move(TIMEOUT * 0.2)
    connection.waiting = 0
    connection.move(TIMEOUT * 0.1)
    assert not connection.watched
    connection.write(10)
    connection.move(TIMEOUT * 0.9)
    connection.waiting = 0
    connection.write(1000)
    connection.move(TIMEOUT * 0.9)
    assert not connection.aborted
    connection.move(TIMEOUT * 0.4)
    assert connection.aborted


def test_stream_is_left_to_its_own_watch(connection):
    """It is told why it ends, and how long that may wait; what it leaves unread has the time of any answer."""
    connection.streaming = True
    connection.write(1000)
    connection.move(TIMEOUT * 10)
    assert not connection.aborted
    connection.streaming = False
    connection.move(TIMEOUT * 0.7)
    assert not connection.aborted
    connection.move(TIMEOUT)
    assert connection.aborted


def test_connection_that_has_ended_is_left_alone(connection):
    """Its timer would keep it in memory."""
    connection.write(1)
    connection.unread.end()
    assert not connection.watched
    connection.unread.end()
    connection.move(TIMEOUT * 2)
    assert not connection.aborted


def test_buffer_shrinks_with_each_byte_that_is_taken():
    """Under uvloop too, before a whole write has been taken: so a slow client is told from one that is gone."""

    async def run():
        ours, theirs = socket.socketpair()
        with theirs:
            transport, _ = await asyncio.get_running_loop().connect_accepted_socket(asyncio.Protocol, ours)
            transport.write(b"x" * 2**24)
            await asyncio.sleep(0)
            before = transport.get_write_buffer_size()
            theirs.setblocking(False)
            async with asyncio.timeout(60):
                while transport.get_write_buffer_size() >= before:
                    await asyncio.get_running_loop().sock_recv(theirs, 2**16)
            assert transport.get_write_buffer_size() > 0
            transport.abort()

    uvloop.run(run())
