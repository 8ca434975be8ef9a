"""How much memory this process may still take.

Owns where that stands: /proc/meminfo, and the limits of the control groups around this process. Does
not know what the memory is for.
"""

from __future__ import annotations

import contextlib
import math
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
    machine = machine_memory(root)
    in_groups = [_left(group, limit) for group, limit in _limits(root)]
    return min([machine.get("MemAvailable", machine.get("MemFree", _UNLIMITED)), *in_groups])


def machine_memory(root: Path = _ROOT) -> dict[str, int]:
    """Bytes by the kernel's names: MemTotal, SwapFree ..."""
    return {name: kib << 10 for name, kib in _numbers(root / "proc/meminfo", separator=":").items()}


def memory_limit(root: Path = _ROOT) -> float:
    """Bytes that the tightest control group allows; infinity if none has a limit."""
    return min((limit for _, limit in _limits(root)), default=math.inf)


def _limits(root: Path) -> Iterator[tuple[Group, int]]:
    """The control groups that limit this process, and bytes that each allows."""
    for group in groups(root, "memory"):
        limit = number(group.folder / ("memory.max" if group.version == 2 else "memory.limit_in_bytes"))
        if limit is not None and limit < _UNLIMITED:
            yield group, limit


def _left(group: Group, limit: int) -> int:
    """Bytes that are left in a control group."""
    usage_name, prefix = ("memory.current", "") if group.version == 2 else ("memory.usage_in_bytes", "total_")
    usage = number(group.folder / usage_name)
    if usage is None:
        return limit
    stat = _numbers(group.folder / "memory.stat", separator=" ")
    files = stat.get(f"{prefix}inactive_file", 0) + stat.get(f"{prefix}active_file", 0)
    return max(limit - usage + files, 0)


def _numbers(path: Path, *, separator: str) -> dict[str, int]:
    """The lines "name<separator> number", or nothing."""
    found = {}
    with contextlib.suppress(OSError):
        for line in path.read_text().splitlines():
            name, _, rest = line.partition(separator)
            with contextlib.suppress(ValueError, IndexError):
                found[name] = int(rest.split()[0])
    return found
