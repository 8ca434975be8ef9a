"""The process that compiles grammars before anybody relies on them: `python -m rbee.grammars.worker`.

Owns what a compilation may cost. Each runs in a fork of this process, which the kernel ends at its limits, and when a
deep grammar overflows its stack: nothing else notices. What compiles here compiles in the engine, whose threads have a
larger stack. Does not know requests.

A request is msgpack [number, source]; its answer [number, what is wrong with the source, whether it always will be]. ""
is nothing.
"""

from __future__ import annotations

import argparse
import os
import resource
import select
import signal
import socket
import sys
import threading
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from rbee.child import die_with_parent, ignore_group_signals
from rbee.errors import GrammarError, ModelError
from rbee.grammars import vocabulary
from rbee.transport.control import ControlChannel

if TYPE_CHECKING:
    from collections.abc import Callable

SECONDS = 1.0  # of a processor, for one compilation
_MEMORY = 128 << 20  # bytes beside the vocabulary's
_STACK = 4 << 20  # bytes; less than the 8 MiB of the engine's main thread, which goes on with what was compiled
_NICENESS = 5  # tokens of streams come first
_LONGEST = 2048  # bytes of a reason

_decode = msgspec.msgpack.Decoder(tuple[int, str]).decode
_encode = msgspec.msgpack.Encoder().encode

_ENDS = {  # of a compilation that would end in the same way again
    signal.SIGPROF: f"it takes more than {SECONDS:g} s of computing to compile",
    signal.SIGABRT: f"it takes more than {_MEMORY >> 20} MiB of memory to compile",
    signal.SIGSEGV: "it is nested too deeply",
}


def main() -> int:
    """Answer requests until the other end is gone; the exit code."""
    parser = argparse.ArgumentParser(description="Started by `rbee serve`, not by hand.")
    parser.add_argument("--control-fd", type=int, required=True)
    parser.add_argument("--parent-pid", type=int, required=True)
    parser.add_argument("--model", required=True)
    options = parser.parse_args()
    if not die_with_parent(options.parent_pid):
        return 0
    ignore_group_signals()
    os.nice(_NICENESS)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        check = _checking(vocabulary.load(options.model))
    except ModelError as error:
        check = _refusing(str(error))
    channel = ControlChannel(socket.socket(fileno=options.control_fd))
    try:
        _Worker(channel, check).run()
    except (EOFError, BrokenPipeError):
        pass
    finally:
        channel.close()
    return 0


def _refusing(problem: str) -> Callable[[str], str]:
    return lambda _source: problem


def _checking(known: vocabulary.Vocabulary) -> Callable[[str], str]:
    """What is wrong with a source; it may take long, or end the process."""

    def check(source: str) -> str:
        try:
            matcher = known.compile(source)
            mask = np.zeros(known.num_words, np.uint32)
            matcher.fill(mask)
        except GrammarError as error:
            return str(error)
        return ""

    return check


class _Worker:
    """Compiles each source in a fork."""

    def __init__(self, channel: ControlChannel, check: Callable[[str], str]) -> None:
        self._channel = channel
        self._check = check
        self._forks: dict[int, tuple[int, int, int]] = {}  # by pidfd: request's number, process, where its answer comes

    def run(self) -> None:
        """Until the other end is gone, which is EOFError."""
        with select.epoll() as poller:
            poller.register(self._channel.fileno(), select.EPOLLIN)
            while True:
                for descriptor, _ in poller.poll():
                    if descriptor in self._forks:
                        poller.unregister(descriptor)
                        self._answer(descriptor)
                        continue
                    for payload in self._channel.receive():
                        number, source = _decode(payload)
                        poller.register(self._fork(number, source), select.EPOLLIN)

    def _fork(self, number: int, source: str) -> int:
        ours, theirs = os.pipe()
        process = os.fork()
        if process == 0:
            _limited(self._check, source, theirs)
        os.close(theirs)
        descriptor = os.pidfd_open(process)
        self._forks[descriptor] = (number, process, ours)
        return descriptor

    def _answer(self, descriptor: int) -> None:
        number, process, answer = self._forks.pop(descriptor)
        _, status = os.waitpid(process, 0)
        problem = os.read(answer, _LONGEST).decode(errors="replace")
        os.close(answer)
        os.close(descriptor)
        end = -os.waitstatus_to_exitcode(status)
        if status != 0:
            problem = _ENDS.get(end, "it cannot be compiled now")  # type: ignore[call-overload]
        self._channel.send(_encode((number, problem, status == 0 or end in _ENDS)))


def _limited(check: Callable[[str], str], source: str, answer: int) -> None:
    """Write what is wrong with a source to the pipe, and end this process; the kernel may end it before."""
    try:
        die_with_parent(os.getppid())
        highest = resource.getrlimit(resource.RLIMIT_DATA)[1]
        limit = _data_bytes() + _MEMORY
        limit = limit if highest == resource.RLIM_INFINITY else min(limit, highest)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, highest))
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # a panic is reported as what is wrong
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        threading.stack_size(_STACK)
        found: list[str] = []
        thread = threading.Thread(target=lambda: found.append(check(source)))
        thread.start()
        thread.join()
        os.write(answer, found[0].encode()[:_LONGEST])  # none, if it has failed
        os._exit(0)
    finally:
        os._exit(1)


def _data_bytes() -> int:
    """Of private memory that this process has, as RLIMIT_DATA counts it."""
    with open("/proc/self/statm", "rb") as file:  # noqa: PTH123 - nothing but a read
        return int(file.read().split()[5]) * resource.getpagesize()


if __name__ == "__main__":
    sys.exit(main())
