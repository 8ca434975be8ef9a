"""How many processors this process may keep busy.

Owns where that stands: its affinity, and the quotas of the control groups around it. Does not know what runs on them.
"""

from __future__ import annotations

import contextlib
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING

from rbee.engine.control_groups import groups, number

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rbee.engine.control_groups import Group

_ROOT = Path("/")


def usable_processors(root: Path = _ROOT) -> int:
    """Threads that can compute all the time: at least 1.

    A thread more than a quota allows has the kernel stop all of them for a part of each period, in the middle of a
    step. So 2.5 processors are two. `root` is where /proc and /sys are.
    """
    return max(1, int(min(len(os.sched_getaffinity(0)), processor_quota(root))))


def processor_quota(root: Path = _ROOT) -> float:
    """Processors that the tightest control group has time for; infinity if none has a limit."""
    return min((quota for group in groups(root, "cpu") for quota in _quota(group)), default=math.inf)


def _quota(group: Group) -> Iterator[float]:
    """Processors that the group has time for, if it has a limit."""
    if group.version == 1:
        quota, period = number(group.folder / "cpu.cfs_quota_us"), number(group.folder / "cpu.cfs_period_us")
        if quota is not None and period and quota > 0:
            yield quota / period
        return
    with contextlib.suppress(OSError, ValueError):  # no limit is "max 100000"
        quota, period = map(int, (group.folder / "cpu.max").read_text().split())
        yield quota / period
