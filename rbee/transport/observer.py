"""Finds servers, maps their arenas read-only and reads samples of them; docs/transport.md, "What observers see".

Owns the search and what a sample is. Does not know rates or screens (`rbee.top`).
"""

from __future__ import annotations

import bisect
import contextlib
import itertools
import math
import mmap
import operator
import os
import select
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from rbee.errors import TransportError
from rbee.transport import _native
from rbee.transport.arena import SHM_FOLDER

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import TracebackType

_BUCKET_STARTS = _native.histogram_bounds()
# Of each bucket; the last one has no end, and counts as its start.
_BUCKET_MIDDLES = [(start + end - 1) / 2 for start, end in itertools.pairwise(_BUCKET_STARTS)] + _BUCKET_STARTS[-1:]
COUNTERS = _native.COUNTERS
COUNTS = tuple(name for name, kind, _ in COUNTERS if kind == "count")
GAUGES = tuple(name for name, kind, _ in COUNTERS if kind == "gauge")
HISTOGRAMS = _native.HISTOGRAMS
_HIDDEN = "--api-key"  # the option whose value is not shown


@dataclass(frozen=True, slots=True)
class Histogram:
    """Durations in ns or whole numbers, counted in buckets that are at most 1/16 of their start wide."""

    buckets: tuple[int, ...]

    @property
    def count(self) -> int:
        return sum(self.buckets)

    @property
    def total(self) -> float:
        """The sum of all values, estimated from the middles of buckets: within 1/32, below 2^39 each (9 min of ns)."""
        return float(sum(map(operator.mul, self.buckets, _BUCKET_MIDDLES)))

    def below(self, bounds: Iterable[int]) -> list[int]:
        """How many values are below each bound: exactly, if it is one that `bucket_start_near` returns."""
        cumulated = [0, *itertools.accumulate(self.buckets)]
        return [cumulated[bisect.bisect_left(_BUCKET_STARTS, bound)] for bound in bounds]

    def minus(self, earlier: Histogram) -> Histogram:
        """Subtract `earlier`, bucket by bucket."""
        return Histogram(tuple(now - before for now, before in zip(self.buckets, earlier.buckets, strict=True)))

    def quantile(self, fraction: float) -> float | None:
        """The value that `fraction` (0 to 1) of all do not exceed, known to 1/16; None without values.

        Interpolates linearly within a bucket. The last bucket has no end; its start is returned.
        """
        cumulated = list(itertools.accumulate(self.buckets))
        if not cumulated or cumulated[-1] == 0:
            return None
        rank = max(1, math.ceil(fraction * cumulated[-1]))
        bucket = bisect.bisect_left(cumulated, rank)
        start = _BUCKET_STARTS[bucket]
        if bucket + 1 == len(_BUCKET_STARTS):
            return float(start)
        width = _BUCKET_STARTS[bucket + 1] - start
        before = cumulated[bucket] - self.buckets[bucket]
        return start + width * (rank - before) / self.buckets[bucket]


def bucket_start_near(value: float) -> int:
    """The start of a bucket that is nearest to `value`."""
    return min(_BUCKET_STARTS, key=lambda start: abs(start - value))


@dataclass(frozen=True, slots=True)
class Sample:
    """An arena's numbers. None is older than the call; two of them may be a few events apart."""

    taken_ns: int  # CLOCK_MONOTONIC, as the heartbeats
    epoch: int
    server_pid: int
    counters: dict[str, int]  # by their names in `_native.COUNTERS`
    histograms: dict[str, Histogram]  # by their names in `_native.HISTOGRAMS`


@dataclass(frozen=True, slots=True)
class FoundServer:
    """A process that holds an arena it has created."""

    pid: int
    command: str  # its command line, without API keys
    epoch: int | None  # of its newest arena; None if that cannot be observed
    problem: str = ""  # why it cannot, in a sentence


class Observer:
    """Maps the newest arena of one server. A context manager."""

    def __init__(self, pid: int) -> None:
        """TransportError: no such process, it has no arena, or it belongs to another user."""
        self.pid = pid
        self.epoch = 0  # of the arena that was mapped last
        self._segments: set[str] = set()  # those that the server held at the last look and that could be read
        self._mapping: mmap.mmap | None = None
        self._resources = contextlib.ExitStack()
        try:
            pidfd = os.pidfd_open(pid)
        except OSError as error:
            raise TransportError(f"Process {pid} cannot be observed: {error.strerror}.") from error
        self._resources.callback(os.close, pidfd)
        self._end = select.poll()
        self._end.register(pidfd, select.POLLIN)
        with contextlib.ExitStack() as stack:
            stack.callback(self.close)
            problem = self._look()
            if not self._segments:
                raise TransportError(
                    problem or f"Process {pid} has no arena: it is no rbee server, or has no engine now."
                )
            stack.pop_all()

    def sample(self) -> Sample | None:
        """Read the newest arena; None while the server has none (its engine is being replaced, or it ends).

        Raises TransportError if the arena was damaged since it was found.
        """
        self._look()
        if self._mapping is None:
            return None
        with memoryview(self._mapping) as memory:
            return read_sample(memory)

    def wait(self, seconds: float) -> bool:
        """Sleep for `seconds`, or until the server has ended; return whether it has."""
        return bool(self._end.poll(seconds * 1000))

    def close(self) -> None:
        self._take(None)
        self._resources.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _look(self) -> str:
        """Map the newest arena if the server's segments have changed; return why one cannot be used, or ''."""
        try:
            held = _held_segments(self.pid)
        except PermissionError as error:
            raise TransportError(
                f"The descriptors of process {self.pid} cannot be read: {error.strerror}. "
                "A server can be observed by the user who runs it, and by root."
            ) from error
        if held.keys() == self._segments:
            return ""
        self._segments = set()
        problem = ""
        newest: tuple[int, mmap.mmap] | None = None
        for name, path in held.items():
            try:
                mapping = _map(path)
                with memoryview(mapping) as memory:
                    epoch = read_sample(memory).epoch
            except TransportError as error:  # its creation may be unfinished: the next call tries again
                problem = f"Process {self.pid} holds the segment {name}, which cannot be observed: {error}"
                continue
            self._segments.add(name)
            if newest is None or epoch > newest[0]:
                newest = epoch, mapping
        self.epoch = self.epoch if newest is None else newest[0]
        self._take(None if newest is None else newest[1])
        return problem

    def _take(self, mapping: mmap.mmap | None) -> None:
        if self._mapping is not None:
            self._mapping.close()
        self._mapping = mapping


def find_servers() -> list[FoundServer]:
    """Return the servers of this user (root: all), by pid; those whose arena cannot be read with the reason."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        pid = int(entry.name)
        with contextlib.suppress(PermissionError):
            if not _held_segments(pid):
                continue
            command = _command_line(entry)
            try:
                with Observer(pid) as observer:
                    found.append(FoundServer(pid, command, observer.epoch))
            except TransportError as error:
                found.append(FoundServer(pid, command, None, str(error)))
    return sorted(found, key=lambda server: server.pid)


def _held_segments(pid: int) -> dict[str, str]:
    """Return name -> descriptor's path in /proc of the arenas that the process created and holds.

    Raises PermissionError if the process belongs to another user.
    """
    prefix = f"{SHM_FOLDER}/rbee-{pid}-"  # the creator's pid: the engine holds the segment too
    held = {}
    with contextlib.suppress(FileNotFoundError, ProcessLookupError), os.scandir(f"/proc/{pid}/fd") as descriptors:
        for descriptor in descriptors:
            with contextlib.suppress(FileNotFoundError):  # closed in between
                target = os.readlink(descriptor.path)  # noqa: PTH115 - a thousand connections are as many links
                if target.startswith(prefix):
                    held[target.removesuffix(" (deleted)")] = descriptor.path
    return held


def _map(path: str) -> mmap.mmap:
    """Map the file behind another process's descriptor read-only; TransportError if that fails."""
    try:
        # O_NONBLOCK: the descriptor may have become another file by now, and opening that must not block.
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError as error:
        raise TransportError(f"it cannot be opened ({error.strerror}).") from error
    try:
        return mmap.mmap(file, os.fstat(file).st_size, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ)
    except (OSError, ValueError) as error:
        raise TransportError(f"it cannot be mapped ({error}).") from error
    finally:
        os.close(file)


def read_sample(memory: memoryview) -> Sample:
    """Read one sample; TransportError if the memory is no valid arena."""
    epoch, server_pid, counters, histograms = _native.observe(memory)
    taken_ns = time.monotonic_ns()
    durations = {name: Histogram(tuple(buckets)) for name, buckets in histograms.items()}
    return Sample(taken_ns, epoch, server_pid, counters, durations)


def _command_line(process: Path) -> str:
    """Return a process's arguments as `ps` shows them, with API keys hidden and unprintable characters replaced."""
    try:
        words = (process / "cmdline").read_bytes().decode(errors="replace").rstrip("\0").split("\0")
    except OSError:  # it has just ended
        return ""
    for at, word in enumerate(words):
        if at > 0 and words[at - 1] == _HIDDEN:
            words[at] = "..."
        elif word.startswith(f"{_HIDDEN}="):
            words[at] = f"{_HIDDEN}=..."
    return "".join(character if character.isprintable() else "?" for character in " ".join(words))
