"""What a child process does so that its parent decides about its end: it never outlives it, and ignores other signals.

Owns the calls for it. Does not know what parent or child do.
"""

from __future__ import annotations

import ctypes
import os
import signal

_PR_SET_PDEATHSIG = 1
GROUP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # terminals and service managers send to whole groups


def die_with_parent(parent_pid: int) -> bool:
    """Have the kernel kill this process when its parent ends (prctl(2)); OSError if it refuses. False: it has ended."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    return os.getppid() == parent_pid


def ignore_group_signals() -> None:
    """Ignore them from now on; a parent that blocked them before it started this process has them ignored all along."""
    for number in GROUP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, GROUP_SIGNALS)
