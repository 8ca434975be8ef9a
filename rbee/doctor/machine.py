"""Processors, their clock, their memory nodes, and whether they are a machine's own.

Owns what each of these means for a server. `rbee.engine.processors` knows how many threads the engine takes.
"""

from __future__ import annotations

import math
import os
import time
from typing import TYPE_CHECKING

from rbee.doctor.finding import Finding, numbers_in, text_of
from rbee.engine.control_groups import groups
from rbee.engine.processors import processor_quota, usable_processors

if TYPE_CHECKING:
    from pathlib import Path

_OLDEST_KERNEL = (5, 3)  # pidfd_open(2)
_POPULATING_KERNEL = (5, 14)  # MADV_POPULATE_WRITE
_USER_SPACE_CLOCKS = frozenset({"tsc", "kvm-clock", "hyperv_clocksource_tsc_page", "arch_sys_counter"})
_CLOCK_READS, _CLOCK_ROUNDS = 200, 10
_MUCH_STOLEN = 0.02  # of the time since the machine's start


def kernel(root: Path) -> Finding:
    """The kernel's release."""
    release = text_of(root / "proc/sys/kernel/osrelease")
    major, _, rest = release.partition(".")
    minor = rest.partition(".")[0]
    value = {"release": release or None}
    if not (major.isdigit() and minor.isdigit()):
        return Finding(
            value, release or "unknown", "error", "This is no Linux with /proc. rbee runs on Linux only: mount /proc."
        )
    version = (int(major), int(minor))
    if version < _OLDEST_KERNEL:
        advice = "rbee learns of an engine's death from a pidfd, which Linux has since 5.3. Take a newer kernel."
        return Finding(value, release, "error", advice)
    if version < _POPULATING_KERNEL:
        advice = "Before Linux 5.14 the first tokens of each stream wait for page faults. Take a newer kernel."
        return Finding(value, release, "note", advice)
    return Finding(value, release)


def processors(root: Path) -> Finding:
    """Those that are online, those that this process may use, and the quota of its control groups."""
    allowed = sorted(os.sched_getaffinity(0))
    online = len(numbers_in(text_of(root / "sys/devices/system/cpu/online"))) or os.cpu_count() or len(allowed)
    quota, threads = processor_quota(root), usable_processors(root)
    value = {
        "online": online,
        "affinity": allowed,
        "quota": None if math.isinf(quota) else quota,
        "control_groups": sorted({group.version for group in groups(root, "cpu") if group.folder.is_dir()}),
        "threads": threads,
    }
    limits = [f"{len(allowed)} of {online}" if len(allowed) < online else str(online)]
    limits += [] if math.isinf(quota) else [f"a quota of {quota:g}"]
    summary = f"{', '.join(limits)}; the engine computes with {threads} thread{'s' if threads > 1 else ''}"
    if quota < 1:
        return Finding(
            value,
            summary,
            "warning",
            f"The control group gives {quota:g} processors: the kernel stops every thread for a part of each period, "
            "also in the middle of a step. Give it one or more (docker --cpus, systemd CPUQuota=).",
        )
    if min(len(allowed), quota) < 2:
        return Finding(
            value,
            summary,
            "note",
            "Server and engine take turns on one processor: tokens are late while a step runs, and --busy-poll gains "
            "nothing. Give them two or more (taskset, cpuset, a larger quota).",
        )
    if len(allowed) < online or quota < online:
        return Finding(value, summary, "note", "Some processors of the machine are not used. Widen affinity or quota.")
    return Finding(value, summary)


def clock(root: Path) -> Finding:
    """Where CLOCK_MONOTONIC comes from, and what a read of it costs."""
    folder = root / "sys/devices/system/clocksource/clocksource0"
    source = text_of(folder / "current_clocksource")
    cost = _clock_cost()
    value = {
        "source": source or None,
        "available": text_of(folder / "available_clocksource").split(),
        "read_ns": round(cost),
    }
    summary = f"{source or 'unknown'}, {cost:.0f} ns per read from Python"
    if source and source not in _USER_SPACE_CLOCKS:
        return Finding(
            value,
            summary,
            "warning",
            f"The clock source {source} makes every read of the clock a system call, and each step and token reads it "
            "several times. Boot with clocksource=tsc if the processor's is stable, or move to a machine that has one.",
        )
    return Finding(value, summary)


def _clock_cost() -> float:
    """Nanoseconds of one read, the best of some rounds."""
    read = time.monotonic_ns
    rounds = []
    for _ in range(_CLOCK_ROUNDS):
        started = read()
        for _ in range(_CLOCK_READS):
            read()
        rounds.append((read() - started) / (_CLOCK_READS + 1))
    return min(rounds)


def numa(root: Path) -> Finding:
    """Nodes with processors that this process may use."""
    folder = root / "sys/devices/system/node"
    allowed = os.sched_getaffinity(0)
    cpulists = {path.parent.name.removeprefix("node"): text_of(path) for path in folder.glob("node[0-9]*/cpulist")}
    nodes = {name: sorted(numbers_in(cpulists[name])) for name in sorted(cpulists, key=int)}
    used = [name for name, cpus in nodes.items() if allowed.intersection(cpus)]
    value = {"nodes": nodes, "used": used}
    if len(used) > 1:
        return Finding(
            value,
            f"{len(used)} nodes",
            "note",
            "The engine's threads read weights from the memory of other nodes, which is slower. Run one server per "
            f"node: numactl --cpunodebind={used[0]} --membind={used[0]} rbee serve ...",
        )
    return Finding(value, "1 node" if nodes else "not known")


def virtualization(root: Path) -> Finding:
    """Signs of a container or a virtual machine, and the time that a hypervisor gave to others."""
    flags = text_of(root / "proc/cpuinfo").partition("\nflags")[2].partition("\n")[0].split()
    container = _container(root)
    stolen = _stolen_share(root)
    value = {"container": container, "virtual_machine": "hypervisor" in flags, "stolen_share": stolen}
    signs = [f"container ({container})"] if container else []
    signs += ["virtual machine"] if "hypervisor" in flags else []
    summary = ", ".join(signs) or "neither container nor virtual machine found"
    if stolen is not None and stolen > _MUCH_STOLEN:
        return Finding(
            value,
            f"{summary}; {stolen:.1%} of the time stolen",
            "warning",
            "The hypervisor gave that share of the processors' time since the start to other machines, and steps wait "
            "for it. Ask for dedicated processors.",
        )
    return Finding(value, summary)


def _container(root: Path) -> str | None:
    if "KUBERNETES_SERVICE_HOST" in os.environ:
        return "kubernetes"
    if name := os.environ.get("container"):  # noqa: SIM112 - systemd's convention, also of podman
        return name
    if (root / ".dockerenv").exists():
        return "docker"
    if (root / "run/.containerenv").exists():
        return "podman"
    return None


def _stolen_share(root: Path) -> float | None:
    """Of all processors' time since the machine's start (proc(5), /proc/stat); None if it is not known."""
    fields = text_of(root / "proc/stat").partition("\n")[0].split()
    try:
        times = [int(field) for field in fields[1:9]]
        return round(times[7] / sum(times), 4)
    except (ValueError, IndexError, ZeroDivisionError):
        return None
