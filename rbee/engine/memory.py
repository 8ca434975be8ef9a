"""How much memory this process may still take.

Owns where that stands: /proc/meminfo, and the limits of the control groups around this process. Does not know
what the memory is for.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

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
    """What is left in each control group that limits this process; of both versions, after the kernel's documents."""
    with contextlib.suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers:
                yield from _left(root / "sys/fs/cgroup", path, "memory.max", "memory.current", "")
            elif "memory" in controllers.split(","):
                names = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_"
                yield from _left(root / "sys/fs/cgroup/memory", path, *names)


def _left(mount: Path, path: str, limit_name: str, usage_name: str, prefix: str) -> Iterator[int]:
    """For the group and those around it; in a container its own may be mounted as the outermost."""
    group = mount / path.strip("/")
    for folder in {group, *group.parents, mount}:
        limit, usage = _number(folder / limit_name), _number(folder / usage_name)
        if limit is not None and usage is not None and limit < _UNLIMITED:
            stat = _numbers(folder / "memory.stat", separator=" ")
            files = stat.get(f"{prefix}inactive_file", 0) + stat.get(f"{prefix}active_file", 0)
            yield max(limit - usage + files, 0)


def _number(path: Path) -> int | None:
    """None: there is no such file, or it says "max"."""
    with contextlib.suppress(OSError, ValueError):
        return int(path.read_text())
    return None


def _numbers(path: Path, *, separator: str) -> dict[str, int]:
    """The lines "name<separator> number", or nothing."""
    found = {}
    with contextlib.suppress(OSError):
        for line in path.read_text().splitlines():
            name, _, rest = line.partition(separator)
            with contextlib.suppress(ValueError, IndexError):
                found[name] = int(rest.split()[0])
    return found
