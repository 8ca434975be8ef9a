"""What anybody can send to the port, at random but alike every time: it is answered or closed, and leaves nothing.

`make fuzz` sends more, of another seed. A failure prints the bytes that reproduce it.
"""

from __future__ import annotations

import asyncio
import os
import re
import sys
import time
from typing import TYPE_CHECKING

import pytest

from tests.faults.faults_parts import Held, held, memory_kb, until_held
from tests.faults.fuzz_client import Client, shrink, smallest
from tests.faults.fuzz_requests import KEY, Conversation, conversation
from tests.raw_client import COMPLETIONS, request_bytes
from tests.server.server_parts import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tests.conftest import Server

INPUTS = int(os.environ.get("RBEE_FUZZ_INPUTS", "100000"))
SEED = int(os.environ.get("RBEE_FUZZ_SEED", "1"))
BATCH = 2000  # conversations between two looks at the server
WARM = 10_000  # of them, after which its memory has the size that it keeps
GROWTH_KB = 24 * 1024
LONGEST_LINE = 4096
COMMON = (
    *("--model", "synthetic", "--synthetic-step-ms", "0.1", "--max-model-len", "1024", "--max-body-mib", "1"),
    *("--resume-timeout", "0.05", "--job-ttl", "0.05"),
)
SERVERS = {
    "strict, with a key": ("--api-key", KEY),
    "lenient, for pages": ("--lenient", "--cors-origin", "https://pages.example", "--log-format", "json"),
}
FIRST = request_bytes(COMPLETIONS, {"prompt": "hi", "guided_regex": "a", "max_tokens": 2}, f"X-Api-Key: {KEY}")
_CONTROLS = re.compile(rb"[\x00-\x09\x0b-\x1f\x7f]|\xc2[\x80-\x9f]|\xe2\x80[\xa8\xa9]")


def _say(text: str) -> None:
    """Pytest shows it with a failure, and `make fuzz` at once."""
    sys.stdout.write(f"\n{text}\n")
    sys.stdout.flush()


class Watched:
    """A server that is looked at after each batch."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.client = Client(server.address)
        self._read = 0  # bytes of the log
        self._marks = 0
        self._before: Held | None = None

    def fault(self, plans: Sequence[Conversation]) -> str:
        """What is wrong with the server after these conversations, or ""."""
        self.client.run(plans)
        return self.look()

    def look(self) -> str:
        """What is wrong with it now, or "". The first time all is right."""
        self._marks += 1
        mark = b"mark-%d" % self._marks
        asked = (
            b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
            b"GET /version HTTP/1.1\r\nHost: localhost\r\nX-Api-Key: %b\r\nX-Request-Id: %b\r\n"
            b"Connection: close\r\n\r\n"
        ) % (KEY.encode(), mark)
        if failures := self.client.run([Conversation((asked,), "half", (frozenset({200}),) * 2)]):
            return f"/health: {failures[0]}; exit code {self.server.process.poll()}"
        if wrong := self._log_until(mark):
            return wrong
        if self._before is None:
            self._before = asyncio.run(held(self.server))
        try:
            asyncio.run(until_held(self.server, self._before))
        except TimeoutError:
            return f"it holds {asyncio.run(held(self.server))}, before it held {self._before}"
        return "" if self._before.rings == 0 else "rings are in use"

    def _log_until(self, mark: bytes) -> str:
        """What is wrong with the log up to the request of this id."""
        deadline = time.monotonic() + PATIENCE
        new = b""
        with self.server.log.open("rb") as log:
            log.seek(self._read)
            while mark not in new:
                if time.monotonic() > deadline:
                    return "the log has no line of a request"
                time.sleep(0.01)
                new += log.read()
        self._read += len(new)
        for line in new.split(b"\n"):
            if len(line) > LONGEST_LINE:
                return f"a line of {len(line)} bytes in the log: {line[:300]!r}"
            if _CONTROLS.search(line):
                return f"a control character in the log: {line!r}"
        for sign in (b"Traceback", b"Exception in ASGI", b" ERROR ", b'"ERROR"'):
            if sign in new:
                return new[max(0, new.index(sign) - 200) :][:6000].decode(errors="replace")
        return ""


def failure_of(watched: Watched, numbers: range) -> str:
    """What the conversations of these numbers bring to light, made small; or ""."""
    failures = watched.client.run(conversation(SEED, number) for number in numbers)
    if failures:
        failure = failures[0]
        hangs = "neither" in failure.reason
        small = failure.plan if hangs else shrink(failure.plan, lambda plan: bool(watched.client.run([plan])))
        return (
            f"{len(failures)} of {len(numbers)} conversations; number {numbers[failure.number]}: {failure.reason}\n"
            f"sent: {small}\ncame: {failure.received!r}"
        )
    if not (wrong := watched.look()):
        return ""
    plans: Sequence[Conversation] = [conversation(SEED, number) for number in numbers]
    if watched.server.process.poll() is None and watched.look() == "":  # it can be tried again
        plans = smallest(plans, lambda some: bool(watched.fault(some)))
        if len(plans) == 1:
            plans = [shrink(plans[0], lambda plan: bool(watched.fault([plan])))]
    sent = plans if len(plans) == 1 else "many"
    return f"after conversations {numbers.start} to {numbers.stop - 1}: {wrong}\nsent: {sent}"


@pytest.mark.parametrize("name", SERVERS)
def test_whatever_is_sent_is_answered_or_closed(start_server: Callable[..., Server], name: str) -> None:
    """With a response of HTTP/1.1 that the API has; the server then holds what it held, and its log is clean."""
    place = list(SERVERS).index(name)
    share = INPUTS // len(SERVERS)
    numbers = range(place * share, (place + 1) * share)
    _say(f"seed {SEED}, conversations {numbers.start} to {numbers.stop - 1} (RBEE_FUZZ_SEED, RBEE_FUZZ_INPUTS)")
    with start_server(*COMMON, *SERVERS[name]) as server:
        watched = Watched(server)
        # What is started when it is first needed is held from now on: the process that compiles grammars.
        assert watched.client.run([Conversation((FIRST,), "half", (frozenset({200}),))]) == []
        assert watched.look() == ""
        memory, most = 0, 0
        for first in range(numbers.start, numbers.stop, BATCH):
            wrong = failure_of(watched, range(first, min(first + BATCH, numbers.stop)))
            assert not wrong, f"seed {SEED}: {wrong}"
            if first - numbers.start < WARM:
                memory = memory_kb(server)
            most = max(most, memory_kb(server))
            _say(f"{first} {memory_kb(server)}")
        _say(f"{watched.client.answered} of them were answered; the server's memory: {memory} kB, {most} kB at most")
        assert most - memory < GROWTH_KB
