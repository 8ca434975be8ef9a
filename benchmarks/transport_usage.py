"""What a process of `bench_transport.py` uses: CPU, context switches and system calls.

`Meter` reads it from inside, as part of a timed run; `Tracer` counts system calls from outside, in a run of its own.
"""

from __future__ import annotations

import contextlib
import os
import re
import resource
import subprocess
import time
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from pathlib import Path


class Usage(NamedTuple):
    """What a process has used since its start, all threads."""

    at_ns: int
    cpu_ns: int
    switches: int
    """Times it gave up its core to wait."""
    reads_writes: int | None
    """System calls that the kernel counts in /proc/self/io: read, write and their kind, not send or recv."""


class Meter:
    """Reads this process's `Usage`."""

    def __init__(self) -> None:
        self._io: int | None = None
        with contextlib.suppress(OSError):  # a kernel without task I/O accounting
            self._io = os.open("/proc/self/io", os.O_RDONLY)

    def read(self) -> Usage:
        """The usage now. Its getrusage call is the marker between which system calls are counted."""
        reads_writes = None
        if self._io is not None:
            counts = dict(line.split(b": ") for line in os.pread(self._io, 4096, 0).splitlines())
            reads_writes = int(counts[b"syscr"]) + int(counts[b"syscw"])
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return Usage(time.monotonic_ns(), time.process_time_ns(), usage.ru_nvcsw, reads_writes)


class Tracer:
    """strace on one process and all of its threads."""

    _CALL = re.compile(r"^\d+ +(\w+)\((\d*)")
    _METER = ("getrusage(", "pread64(", "CLOCK_PROCESS_CPUTIME_ID")

    def __init__(self, pid: int | None, control_fd: int, log: Path) -> None:
        self._log = log
        self._control_fd = control_fd
        self._strace = subprocess.Popen(
            ["strace", "-f", "-o", log, "-p", str(pid)], stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        assert self._strace.stderr is not None
        self._stderr = self._strace.stderr
        self._attached = "attached" in self._stderr.readline()

    def calls(self) -> Counter[str] | None:
        """The calls between the process's two marks, by name, without the harness's own; None if it was not traced."""
        self._strace.wait()
        if not self._attached:
            return None
        calls: Counter[str] = Counter()
        marks = 0
        for line in self._log.read_text().splitlines():
            if not (match := self._CALL.match(line)):
                continue
            name, fd = match.groups()
            marks += name == "getrusage"
            control = name in {"read", "write"} and fd == str(self._control_fd)
            if marks == 1 and not control and not any(meter in line for meter in self._METER):
                calls[name] += 1
        return calls

    def end(self) -> None:
        """Stop it if it still runs."""
        self._strace.kill()
        self._strace.wait()
        self._stderr.close()
