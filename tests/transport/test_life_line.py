"""Life lines, between two real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from typing import Self

import pytest

from rbee.errors import TransportError
from rbee.transport import (
    LifeLine,
    _native,  # noqa: TID251 - what is under test
)

PATIENCE = 30.0  # seconds after which a test fails
# A thread holds it until a line comes, and the process goes on until its input ends.
HOLDER = """
import sys, threading
from rbee.transport import LifeLine

def hold(held):
    LifeLine.attach(int(sys.argv[1])).hold()
    held.set()
    sys.stdin.readline()

held = threading.Event()
holder = threading.Thread(target=hold, args=(held,))
holder.start()
held.wait()
print(flush=True)
holder.join()
sys.stdin.read()
"""


class Holder:
    """A process with a thread that holds a life line, and a thread here that waits for it."""

    def __init__(self) -> None:
        line, descriptor = LifeLine.create()
        command = [sys.executable, "-c", HOLDER, str(descriptor)]
        self.process = subprocess.Popen(
            command, pass_fds=[descriptor], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        os.close(descriptor)
        assert self.process.stdout is not None
        self.process.stdout.readline()
        self.waiting = threading.Thread(target=line.wait)
        self.waiting.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate(timeout=PATIENCE)
        self.waiting.join(PATIENCE)


def test_end_of_the_thread_is_seen_while_its_process_lives() -> None:
    """Nothing has to be freed for it."""
    with Holder() as holder:
        assert holder.waiting.is_alive()
        assert holder.process.stdin is not None
        holder.process.stdin.write("\n")
        holder.process.stdin.flush()
        holder.waiting.join(PATIENCE)
        assert not holder.waiting.is_alive()
        assert holder.process.poll() is None


def test_sigkill_is_the_end_of_every_thread() -> None:
    """The holder can do nothing about it any more."""
    with Holder() as holder:
        holder.process.send_signal(signal.SIGKILL)
        holder.waiting.join(PATIENCE)
        assert not holder.waiting.is_alive()


def test_only_one_thread_can_hold_it() -> None:
    """Another one is refused."""
    line, descriptor = LifeLine.create()
    os.close(descriptor)
    held, end = threading.Event(), threading.Event()

    def hold() -> None:
        line.hold()
        held.set()
        end.wait(PATIENCE)

    first = threading.Thread(target=hold)
    first.start()
    assert held.wait(PATIENCE)
    with pytest.raises(TransportError, match="busy"):
        line.hold()
    end.set()
    first.join(PATIENCE)


def test_memory_that_is_no_life_line_is_refused() -> None:
    """Too small, or not aligned to its size."""
    with pytest.raises(TransportError, match="too small"):
        _native.format_life_line(memoryview(bytearray(8)))
    with pytest.raises(TransportError, match="aligned"):
        _native.format_life_line(memoryview(bytearray(256))[1:])
