"""How much memory this process may still take.

Owns where that stands: /proc/meminfo, and the limits of the control groups around this process. Does not know
what the memory is for.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

from rbee.engine.control_groups import groups, number

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rbee.engine.control_groups import Group

_ROOT = Path("/")
_UNLIMITED = 1 << 60  # what a control group without a limit has, or more


def available_memory(root: Path = _ROOT) -> int:
    """Bytes that can be taken without swapping or being killed: the least that the machine and any control group has.

    Files in the page cache count as available, as in the kernel's MemAvailable. `root` is where /proc and /sys are.
    """
    return min([_of_machine(root), *_of_groups(root)])


def _of_machine(root: Path) -> int:
    fields = _numbers(root / "proc/meminfo", separator=":")
    return fields.get("MemAvailable", fields.get("MemFree", _UNLIMITED >> 10)) << 10


def _of_groups(root: Path) -> Iterator[int]:
    """What is left in each control group that limits this process."""
    for group in groups(root, "memory"):
        if group.version == 2:
            yield from _left(group, "memory.max", "memory.current", "")
        else:
            yield from _left(group, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_")


def _left(group: Group, limit_name: str, usage_name: str, prefix: str) -> Iterator[int]:
    limit, usage = number(group.folder / limit_name), number(group.folder / usage_name)
    if limit is not None and usage is not None and limit < _UNLIMITED:
        stat = _numbers(group.folder / "memory.stat", separator=" ")
        files = stat.get(f"{prefix}inactive_file", 0) + stat.get(f"{prefix}active_file", 0)
        yield max(limit - usage + files, 0)


def _numbers(path: Path, *, separator: str) -> dict[str, int]:
    """The lines "name<separator> number", or nothing."""
    found = {}
    with contextlib.suppress(OSError):
        for line in path.read_text().splitlines():
            name, _, rest = line.partition(separator)
            with contextlib.suppress(ValueError, IndexError):
                found[name] = int(rest.split()[0])
    return found
