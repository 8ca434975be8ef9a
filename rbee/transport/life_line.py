"""A life line: it shows the server at once that the engine is ending.

A process has ended when the kernel has freed its memory: with a model's, 10 to 50 ms after a SIGKILL. Long before that
the kernel gives up what each of its threads holds, and a life line is held by the engine's main thread, which commits
its tokens (`native/include/rbee/life_line.h`). Owns the memory. Does not know what follows.
"""

from __future__ import annotations

import mmap
import os

from rbee.transport import _native


class LifeLine:
    """A mapping of it, made by `create` (server) or `attach` (engine), and kept as long as this object."""

    def __init__(self, descriptor: int) -> None:
        self._memory = mmap.mmap(descriptor, mmap.PAGESIZE)

    @classmethod
    def create(cls) -> tuple[LifeLine, int]:
        """A new one, and the descriptor by which another process attaches it; the caller closes that."""
        descriptor = os.memfd_create("rbee-life-line")
        try:
            os.ftruncate(descriptor, mmap.PAGESIZE)
            line = cls(descriptor)
        except BaseException:
            os.close(descriptor)
            raise
        _native.format_life_line(line._memory)
        return line, descriptor

    @classmethod
    def attach(cls, descriptor: int) -> LifeLine:
        return cls(descriptor)

    def hold(self) -> None:
        """Hold it until the calling thread ends."""
        _native.hold_life_line(self._memory)

    def wait(self) -> None:
        """Wait, in a thread of its own, until the thread that holds it has ended. At most one can wait, and once."""
        _native.await_life_line(self._memory)
