"""Memory of every kind, and file descriptors: how much there is, and whether that is enough.

Owns what a server with default options needs. `rbee.engine.memory` knows how much is available.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

from rbee.config import ServerConfig
from rbee.doctor.finding import Finding, chosen_word, size, text_of
from rbee.engine.memory import available_memory, machine_memory, memory_limit
from rbee.server.http.descriptors import descriptors_for

_FOLDER = Path("/dev/shm")  # noqa: S108 - rbee.transport.arena's, which may not load
_LITTLE_MEMORY = 1 << 30  # the default model, 256 MiB of KV cache, and both processes
_FEWEST_REQUESTS = 64  # that `rbee serve` can be started for


def memory(root: Path) -> Finding:
    """Of the machine, and what its control groups allow."""
    total = machine_memory(root).get("MemTotal")
    available, limit = available_memory(root), memory_limit(root)
    bound = None if math.isinf(limit) else int(limit)
    value = {"total": total, "available": available, "limit": bound}
    summary = f"{size(available)} available of {size(total)}"
    summary += "" if bound is None else f"; the control group allows {size(bound)}"
    if available < _LITTLE_MEMORY:
        return Finding(
            value,
            summary,
            "warning",
            "Weights, 256 MiB of KV cache at the least, and some 300 MiB of both processes have to fit; a model that "
            "does not is refused. Free some memory, raise the limit (docker --memory, systemd MemoryMax=), or serve a "
            "smaller model.",
        )
    if bound is not None and total is not None and bound < total:
        advice = "A model that needs more than the control group allows is refused. Raise its limit for a larger one."
        return Finding(value, summary, "note", advice)
    return Finding(value, summary)


def swap(root: Path) -> Finding:
    """Space, and how much of it is in use."""
    sizes = machine_memory(root)
    total = sizes.get("SwapTotal", 0)
    used = total - sizes.get("SwapFree", 0)
    value = {"total": total, "used": used}
    if used:
        return Finding(
            value,
            f"{size(used)} of {size(total)} used",
            "note",
            "Weights or KV cache that lie in swap make a step wait for the disk. Free some memory, or switch swap off "
            "(swapoff -a).",
        )
    return Finding(value, f"{size(total)}, unused" if total else "none")


def huge_pages(root: Path) -> Finding:
    """Transparent huge pages: of weights and KV cache, and of shared memory."""
    folder = root / "sys/kernel/mm/transparent_hugepage"
    private, shared = chosen_word(folder / "enabled"), chosen_word(folder / "shmem_enabled")
    value = {"private": private, "shared": shared}
    summary = f"{private or 'not known'} for private memory, {shared or 'not known'} for shared memory"
    if private in (None, "never"):
        return Finding(
            value,
            summary,
            "warning",
            "Weights lie on small pages, and reading them misses the processor's page tables more often. As root: "
            "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled",
        )
    return Finding(value, summary)


def shared_memory(root: Path, needed: int | None) -> Finding:
    """Where arenas are; `needed` is the size of a default server's, None if it is not known."""
    folder = root / _FOLDER.relative_to("/")
    if not folder.is_dir():
        return Finding(
            {"total": None, "free": None, "needed": needed, "writable": False, "filesystem": None},
            f"no {_FOLDER}",
            "error",
            f"Server and engine share memory through {_FOLDER}. As root: mount -t tmpfs tmpfs {_FOLDER}",
        )
    room = os.statvfs(folder)
    total, free = room.f_blocks * room.f_frsize, room.f_bavail * room.f_frsize
    writable = os.access(folder, os.W_OK | os.X_OK)
    filesystem = _filesystem(root, str(_FOLDER))
    value = {"total": total, "free": free, "needed": needed, "writable": writable, "filesystem": filesystem}
    summary = f"{size(free)} free of {size(total)}"
    if not writable:
        advice = f"This user cannot write to {_FOLDER}, and no server can start. As root: chmod 1777 {_FOLDER}"
        return Finding(value, f"{summary}, not writable", "error", advice)
    if needed is not None and free < needed:
        options = ServerConfig()
        return Finding(
            value,
            summary,
            "error",
            f"A server with default options needs {size(needed)}. Free some, make it larger (docker --shm-size), or "
            f"lower --max-requests ({options.max_requests}) or --ring-capacity ({options.ring_capacity}).",
        )
    if filesystem not in (None, "tmpfs"):
        advice = f"{_FOLDER} is no tmpfs, and tokens may wait for a disk. As root: mount -t tmpfs tmpfs {_FOLDER}"
        return Finding(value, summary, "warning", advice)
    return Finding(value, summary)


def _filesystem(root: Path, mount: str) -> str | None:
    """The type of what is mounted there last; None if nothing is."""
    lines = [line.split() for line in text_of(root / "proc/self/mounts").splitlines()]
    return next((fields[2] for fields in reversed(lines) if fields[1:2] == [mount]), None)


def file_descriptors(root: Path) -> Finding:
    """The limits of this process, beside what a server with default options needs."""
    soft, hard = _limit(root, "Max open files")
    requests = ServerConfig().max_requests
    needed = descriptors_for(requests)
    value = {"soft": soft, "hard": hard, "needed": needed}
    summary = f"{'unlimited' if soft is None else soft}, at most {'unlimited' if hard is None else hard}"
    if hard is not None and hard < descriptors_for(_FEWEST_REQUESTS):
        advice = f"A server needs {descriptors_for(_FEWEST_REQUESTS)} at the least. Raise the hard limit (ulimit -Hn)."
        return Finding(value, summary, "error", advice)
    if hard is not None and hard < needed:
        most = (hard - descriptors_for(0)) // 64 * 64
        return Finding(
            value,
            summary,
            "warning",
            f"A server with the default --max-requests {requests} needs {needed} and does not start. Raise the hard "
            f"limit (ulimit -Hn), or give --max-requests {most}.",
        )
    return Finding(value, summary)


def locked_memory(root: Path) -> Finding:
    """RLIMIT_MEMLOCK."""
    soft, hard = _limit(root, "Max locked memory")
    return Finding({"soft": soft, "hard": hard}, f"{size(soft)}; rbee locks none")


def _limit(root: Path, name: str) -> tuple[int | None, int | None]:
    """The soft and the hard limit of this process (proc(5), /proc/pid/limits); None is unlimited, or not known."""
    for line in text_of(root / "proc/self/limits").splitlines():
        if line.startswith(name):
            soft, hard = line.removeprefix(name).split()[:2]
            return _count(soft), _count(hard)
    return None, None


def _count(word: str) -> int | None:
    return int(word) if word.isdigit() else None
