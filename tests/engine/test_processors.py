"""How many processors there are to compute with, by the files in which Linux says so."""

from __future__ import annotations

import math
import os

import pytest

from rbee.engine.processors import processor_quota, usable_processors

CORES = 6


@pytest.fixture
def system(tmp_path, monkeypatch):
    """Writes a file of /proc or /sys under a root of its own; that root. The process may use six cores."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(CORES)))

    def write(path, content):
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
        return tmp_path

    return write


def test_this_machine_has_processors():
    """At least one, and none that this process may not use."""
    assert 1 <= usable_processors() <= len(os.sched_getaffinity(0))


def test_without_control_groups_the_affinity_counts(system, tmp_path):
    """Also where /proc says nothing of groups."""
    assert usable_processors(tmp_path) == CORES
    assert processor_quota(tmp_path) == math.inf
    assert usable_processors(system("proc/self/cgroup", "0::/\n")) == CORES


@pytest.mark.parametrize(
    ("quota", "usable"),
    [("max 100000", 6), ("50000 100000", 1), ("250000 100000", 2), ("300000 100000", 3), ("900000 100000", 6), ("", 6)],
)
def test_a_quota_counts_by_whole_processors(system, quota, usable):
    """Half a processor is one thread; two and a half are two."""
    system("proc/self/cgroup", "0::/docker/0123\n")
    assert usable_processors(system("sys/fs/cgroup/cpu.max", quota + "\n")) == usable


def test_the_tightest_control_group_counts(system):
    """That of the process or one around it."""
    system("proc/self/cgroup", "0::/outer/inner\n")
    system("sys/fs/cgroup/outer/inner/cpu.max", "max 100000\n")
    assert usable_processors(system("sys/fs/cgroup/outer/cpu.max", "200000 50000\n")) == 4
    assert usable_processors(system("sys/fs/cgroup/outer/inner/cpu.max", "150000 50000\n")) == 3
    assert processor_quota(system("sys/fs/cgroup/outer/inner/cpu.max", "25000 50000\n")) == 0.5


@pytest.mark.parametrize("mount", ["cpu,cpuacct", "cpu"])
def test_control_groups_of_version_1(system, mount):
    """Mounted under the controllers' names, or under the one's; -1 is no limit."""
    system("proc/self/cgroup", "5:cpu,cpuacct:/a\n3:memory:/a\n")
    system(f"sys/fs/cgroup/{mount}/a/cpu.cfs_period_us", "100000\n")
    assert usable_processors(system(f"sys/fs/cgroup/{mount}/a/cpu.cfs_quota_us", "-1\n")) == CORES
    assert usable_processors(system(f"sys/fs/cgroup/{mount}/a/cpu.cfs_quota_us", "200000\n")) == 2
