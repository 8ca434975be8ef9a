"""How much memory is available, by the files in which Linux says so."""

from __future__ import annotations

import math

import psutil
import pytest

from rbee.engine.memory import available_memory, machine_memory, memory_limit

MIB = 1 << 20


@pytest.fixture
def system(tmp_path):
    """Writes a file of /proc or /sys under a root of its own; that root. The machine has 8,000 MiB available."""

    def write(path, content):
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
        return tmp_path

    write("proc/meminfo", "MemTotal:       16384000 kB\nMemFree:  100 kB\nMemAvailable:    8192000 kB\nHugePages: x\n")
    return write


def test_this_machine_has_memory():
    """As the kernel counts it, unless a control group allows less."""
    assert 0 < available_memory() <= psutil.virtual_memory().total


def test_a_machine_without_control_groups(system):
    """MemAvailable counts; old kernels have only MemFree. All of it is told by the kernel's names, in bytes."""
    root = system("proc/self/cgroup", "0::/\n")
    assert available_memory(root) == 8000 * MIB
    assert machine_memory(root)["MemTotal"] == 16000 * MIB
    assert memory_limit(root) == math.inf
    assert available_memory(system("proc/meminfo", "MemFree: 2048 kB\n")) == 2 * MIB


def test_the_tightest_control_group_counts(system):
    """Of version 2: that of the process or one around it; files in its page cache can be dropped."""
    system("proc/self/cgroup", "0::/outer/inner\n")
    system("sys/fs/cgroup/outer/inner/memory.max", "max\n")
    system("sys/fs/cgroup/outer/inner/memory.current", f"{500 * MIB}\n")
    system("sys/fs/cgroup/outer/memory.max", f"{2000 * MIB}\n")
    root = system("sys/fs/cgroup/outer/memory.current", f"{1500 * MIB}\n")
    assert available_memory(root) == 500 * MIB
    system("sys/fs/cgroup/outer/memory.stat", f"anon 7\ninactive_file {100 * MIB}\nactive_file {50 * MIB}\n")
    assert available_memory(root) == 650 * MIB
    system("sys/fs/cgroup/outer/memory.current", f"{3000 * MIB}\n")
    assert available_memory(root) == 0
    assert memory_limit(root) == 2000 * MIB


def test_control_groups_of_a_container(system):
    """The path is that of the host, and the group is mounted as the root."""
    system("proc/self/cgroup", "0::/docker/0123\n")
    system("sys/fs/cgroup/memory.max", f"{1000 * MIB}\n")
    assert available_memory(system("sys/fs/cgroup/memory.current", "0\n")) == 1000 * MIB


def test_control_groups_of_version_1(system):
    """A limit of nearly 2^63 is none."""
    system("proc/self/cgroup", "5:cpu,cpuacct:/a\n3:memory:/a\n")
    system("sys/fs/cgroup/memory/a/memory.limit_in_bytes", f"{(1 << 63) - 4096}\n")
    system("sys/fs/cgroup/memory/a/memory.usage_in_bytes", "1\n")
    system("sys/fs/cgroup/memory/memory.limit_in_bytes", f"{700 * MIB}\n")
    system("sys/fs/cgroup/memory/memory.usage_in_bytes", f"{300 * MIB}\n")
    root = system("sys/fs/cgroup/memory/memory.stat", f"inactive_file 1\ntotal_inactive_file {10 * MIB}\n")
    assert available_memory(root) == 410 * MIB
