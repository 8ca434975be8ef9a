"""The control groups around this process.

Owns where Linux mounts them, in both versions (the kernel's documents cgroup-v1 and cgroup-v2). Does not know what a
group limits.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class Group(NamedTuple):
    """One that limits this process, by its folder."""

    folder: Path
    version: int


def groups(root: Path, controller: str) -> Iterator[Group]:
    """Those of `controller` ("memory", "cpu") that this process is in, directly or by one around it.

    Args:
        root: where /proc and /sys are.
        controller: as version 1 calls it.
    """
    with contextlib.suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers:
                yield from _around(root / "sys/fs/cgroup", path, 2)
            elif controller in controllers.split(","):
                for name in dict.fromkeys((controllers, controller)):
                    yield from _around(root / "sys/fs/cgroup" / name, path, 1)


def number(path: Path) -> int | None:
    """What the file says; None if there is no such file, or another word in it."""
    with contextlib.suppress(OSError, ValueError):
        return int(path.read_text())
    return None


def _around(mount: Path, path: str, version: int) -> Iterator[Group]:
    """In a container its own group may be mounted as the outermost."""
    group = mount / path.strip("/")
    for folder in {group, *group.parents, mount}:
        yield Group(folder, version)
