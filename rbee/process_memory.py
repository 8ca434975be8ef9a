"""How much memory a process holds for itself.

Owns where that stands: /proc/PID/statm. Does not know what the memory is for.
"""

from __future__ import annotations

import resource
from pathlib import Path

_ROOT = Path("/")


def private_memory(pid: int | None = None, root: Path = _ROOT) -> int:
    """Bytes that a process (None: this one) holds: without the pages of files, which the kernel can take back.

    0 for a process that has ended and is not waited for yet. `root` is where /proc is.

    Raises:
        OSError: there is no such process.
    """
    _, resident, shared, *_ = (root / "proc" / str(pid or "self") / "statm").read_text().split()
    return (int(resident) - int(shared)) * resource.getpagesize()
