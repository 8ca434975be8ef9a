"""An arena seen from outside: found through its server's descriptors, mapped read-only, sampled.

Owns how an observer finds servers and their arenas, and what a sample is. Neither observed process takes part: nothing
is written, sent or signalled, and no lock is held that they could wait for. Knows neither rates nor screens; that is
`rbee.top`.

A segment's name is gone from /dev/shm as soon as the engine has attached, but its server keeps a descriptor of it, and
the kernel lets the server's user and root open that file once more through /proc (proc_pid_fd(5)).
"""

from __future__ import annotations

import bisect
import contextlib
import itertools
import math
import mmap
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
    from types import TracebackType

_BUCKET_STARTS = _native.histogram_bounds()
COUNTS = tuple(name for name, kind, _ in _native.COUNTERS if kind == "count")
GAUGES = tuple(name for name, kind, _ in _native.COUNTERS if kind == "gauge")
_HIDDEN = "--api-key"  # the option whose value is not shown


@dataclass(frozen=True, slots=True)
class Histogram:
    """Durations, counted in buckets that are at most 1/16 of their start wide."""

    buckets: tuple[int, ...]

    @property
    def count(self) -> int:
        """How many durations were counted."""
        return sum(self.buckets)

    def minus(self, earlier: Histogram) -> Histogram:
        """What was counted since `earlier`."""
        return Histogram(tuple(now - before for now, before in zip(self.buckets, earlier.buckets, strict=True)))

    def quantile(self, fraction: float) -> float | None:
        """The duration in ns that `fraction` (0 to 1) of all do not exceed, known to 1/16; None if there are none.

        Within its bucket, durations are taken to be evenly spread. The last bucket has no end: its start stands for it.
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


@dataclass(frozen=True, slots=True)
class Sample:
    """An arena's numbers at one moment.

    The two processes go on counting while it is read: each number is whole, and none is older than the call, but two of
    them may be a few events apart.
    """

    taken_ns: int
    """CLOCK_MONOTONIC, as the heartbeats."""
    epoch: int
    server_pid: int
    counters: dict[str, int]
    """By their names in `_native.COUNTERS`."""
    histograms: dict[str, Histogram]
    """By their names in `_native.HISTOGRAMS`."""


@dataclass(frozen=True, slots=True)
class FoundServer:
    """A process that holds an arena it has created."""

    pid: int
    command: str
    """Its command line, without API keys."""
    epoch: int | None
    """Of its newest arena; None if that cannot be observed."""
    problem: str = ""
    """Why not, in a sentence."""


class Observer:
    """Watches one server and whichever arena it has now. A context manager.

    Attributes:
        pid: the server's.
        epoch: of the arena that was seen last.
    """

    def __init__(self, pid: int) -> None:
        """Find the server's newest arena.

        Raises:
            TransportError: no such process, it has no arena, or it belongs to another user.
        """
        self.pid = pid
        self.epoch = 0
        self._segments: set[str] = set()  # the sound ones that the server held at the last look
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
        """The newest arena's numbers; None while the server has none (its engine is being replaced, or it ends).

        Raises:
            TransportError: the arena was damaged since it was found.
        """
        self._look()
        return None if self._mapping is None else _read(self._mapping)

    def wait(self, seconds: float) -> bool:
        """Sleep; True, and at once, when the server has ended."""
        return bool(self._end.poll(seconds * 1000))

    def close(self) -> None:
        """Unmap the arena. A second call does nothing."""
        self._take(None)
        self._resources.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _look(self) -> str:
        """Map the newest arena if the server's segments have changed; why one of them cannot be used, or ''."""
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
                epoch = _read(mapping).epoch
            except TransportError as error:  # perhaps its creation is not finished: it is looked at again next time
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
    """All servers that this user may observe, by pid; also those whose arena cannot be read, with the reason."""
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
    """Segments that the process has created as an arena's and still holds: their name -> a descriptor's path in /proc.

    Of two processes that hold one, the creator is meant: its pid is in the name.

    Raises:
        PermissionError: the process belongs to another user.
    """
    prefix = f"{SHM_FOLDER}/rbee-{pid}-"
    held = {}
    with contextlib.suppress(FileNotFoundError, ProcessLookupError), os.scandir(f"/proc/{pid}/fd") as descriptors:
        for descriptor in descriptors:
            with contextlib.suppress(FileNotFoundError):  # closed in between
                target = os.readlink(descriptor.path)  # noqa: PTH115 - a thousand connections are as many links
                if target.startswith(prefix):
                    held[target.removesuffix(" (deleted)")] = descriptor.path
    return held


def _map(path: str) -> mmap.mmap:
    """The file behind a descriptor of another process, read-only; TransportError if that is not possible."""
    try:
        # O_NONBLOCK: should the descriptor have become something else by now, opening that may not block.
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError as error:
        raise TransportError(f"it cannot be opened ({error.strerror}).") from error
    try:
        return mmap.mmap(file, os.fstat(file).st_size, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ)
    except (OSError, ValueError) as error:
        raise TransportError(f"it cannot be mapped ({error}).") from error
    finally:
        os.close(file)


def _read(mapping: mmap.mmap) -> Sample:
    """One sample; TransportError if the memory is not a sound arena."""
    with memoryview(mapping) as memory:
        epoch, server_pid, counters, histograms = _native.observe(memory)
    taken_ns = time.monotonic_ns()
    durations = {name: Histogram(tuple(buckets)) for name, buckets in histograms.items()}
    return Sample(taken_ns, epoch, server_pid, counters, durations)


def _command_line(process: Path) -> str:
    """What `ps` shows of a process, made fit to print."""
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
