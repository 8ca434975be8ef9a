"""Descriptors 0 to 2, and lines for people on them: they never decide whether a process lives.

Owns what becomes of a standard stream that is closed, or whose reader or disk has no more room. Does not know what is
said on it.
"""

from __future__ import annotations

import atexit
import os
import sys

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


def say(line: str, *, as_error: bool = False) -> None:
    """Write one line to stdout or stderr at once, for people and for programs that wait for it."""
    stream = sys.stderr if as_error else sys.stdout
    try:
        stream.write(line + "\n")
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
