"""Descriptors 0 to 2, and lines for people on them: they never decide whether a process lives.

Owns what becomes of a standard stream that is closed, or whose reader or disk has no more room, and that nobody waits
for the log's. Does not know what is said on it.
"""

from __future__ import annotations

import atexit
import os
import select
import sys
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_MOST_WAITING = 4 * 2**20  # bytes of lines that wait for a reader
_PIPE_BUF = select.PIPE_BUF  # bytes that a pipe takes as a whole: lines of two processes do not mix
_LAST_PATIENCE = 0.5  # seconds that the end of a process waits for the reader
_MODES = ("r", "w", "w")  # of stdin, stdout, stderr


def protect() -> None:
    """Open /dev/null where a standard descriptor is closed; to be called before anything else opens a file.

    Otherwise the next file or socket would get the number, and lines for people would go into it. At the end of the
    process, output that finds no room is dropped: Python would make an exit code of it.
    """
    for number, (name, mode) in enumerate(zip(("stdin", "stdout", "stderr"), _MODES, strict=True)):
        try:
            os.fstat(number)
        except OSError:
            _to_nowhere(number)
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, mode, closefd=False))
    atexit.register(_drop_what_is_left)


def printable(text: str) -> str:
    r"""`text` with escapes for what is not printable, as Python writes them: `\n`, `\x1b`, `\u2028`."""
    if text.isprintable():
        return text
    return "".join([c if c.isprintable() else c.encode("unicode_escape").decode() for c in text])


class LineWriter:
    """Writes lines to a descriptor from a thread of its own: who has a line never waits.

    At most `most_waiting` bytes wait for a reader that does not read; further lines are dropped. `note_dropped` makes a
    line of their number, which stands where they are missing as soon as something can be written again. Lines whose
    reader has gone, or whose disk is full, count as dropped too. The thread starts with the first line.
    """

    def __init__(
        self, descriptor: int, note_dropped: Callable[[int], str], *, most_waiting: int = _MOST_WAITING
    ) -> None:
        self._descriptor = descriptor
        self._note_dropped = note_dropped
        self._most_waiting = most_waiting
        self._changed = threading.Condition()
        self._waiting: list[bytes | int] = []  # what the thread has not taken yet; a number: so many were dropped here
        self._num_bytes = 0  # of these, and of what it is writing
        self._missing = 0  # the thread's: lines that are dropped and not yet noted
        self._closed = False
        self._thread: threading.Thread | None = None

    def write(self, line: str) -> None:
        """Have `line` written, which has no line end of its own. From any thread; does nothing after `close`."""
        data = _encoded(line)
        with self._changed:
            if self._closed:
                return
            if self._num_bytes + len(data) > self._most_waiting:
                self._drop()
                return
            self._waiting.append(data)
            self._num_bytes += len(data)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="log", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def flush(self, patience: float = _LAST_PATIENCE) -> None:
        """Wait until everything is written, or for `patience` seconds."""
        with self._changed:
            self._changed.wait_for(lambda: not self._num_bytes and not self._waiting, patience)

    def close(self) -> None:
        """Take no more lines; the thread ends behind the last one."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _run(self) -> None:
        while waiting := self._take():
            writable = True
            for number, data in _batches(waiting):
                if data and self._note() and _write(self._descriptor, data):
                    writable = True
                    continue
                writable = not data
                self._missing += number
            if writable:
                self._note()
            with self._changed:
                self._num_bytes -= sum(len(entry) for entry in waiting if isinstance(entry, bytes))
                self._changed.notify_all()

    def _take(self) -> list[bytes | int]:
        """Wait for lines; none: it is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            waiting, self._waiting = self._waiting, []
            return waiting

    def _note(self) -> bool:
        """Where lines are missing, say how many. False if that cannot be written."""
        if self._missing and _write(self._descriptor, _encoded(self._note_dropped(self._missing))):
            self._missing = 0
        return not self._missing

    def _drop(self) -> None:
        last = self._waiting[-1] if self._waiting else None
        if isinstance(last, int):
            self._waiting[-1] = last + 1
        else:
            self._waiting.append(1)


def _encoded(line: str) -> bytes:
    return line.encode(errors="backslashreplace") + b"\n"


def _batches(waiting: list[bytes | int]) -> Iterator[tuple[int, bytes]]:
    """(number of lines, the lines), as many at once as a pipe takes whole; without bytes: so many were dropped."""
    number, batch = 0, b""
    for entry in waiting:
        if batch and (isinstance(entry, int) or len(batch) + len(entry) > _PIPE_BUF):
            yield number, batch
            number, batch = 0, b""
        if isinstance(entry, int):
            yield entry, b""
        else:
            number, batch = number + 1, batch + entry
    if batch:
        yield number, batch


def _write(descriptor: int, data: bytes) -> bool:
    """Write all of `data`, however long that takes; False if it cannot be written."""
    while data:
        try:
            data = data[os.write(descriptor, data) :]
        except BlockingIOError:  # somebody who shares the file has made it so
            poller = select.poll()
            poller.register(descriptor, select.POLLOUT)
            poller.poll()
        except OSError:
            return False
    return True


def say(line: str, *, as_error: bool = False) -> None:
    """Write one line to stdout or stderr at once, for people and for programs that wait for it."""
    stream = sys.stderr if as_error else sys.stdout
    try:
        stream.write(printable(line) + "\n")
        stream.flush()
    except OSError:  # the reader has gone, or the disk is full
        _to_nowhere(2 if as_error else 1)


def _drop_what_is_left() -> None:
    for number, stream in ((1, sys.stdout), (2, sys.stderr)):
        try:
            stream.flush()
        except OSError:
            _to_nowhere(number)


def _to_nowhere(number: int) -> None:
    """Make the descriptor one of /dev/null, which child processes have too."""
    null = os.open(os.devnull, os.O_RDWR)
    if null != number:
        os.dup2(null, number)
        os.close(null)
    os.set_inheritable(number, True)
