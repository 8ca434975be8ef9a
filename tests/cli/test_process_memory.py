"""How much memory a process holds, by the file in which Linux says so."""

from __future__ import annotations

import os
import resource
import subprocess
import sys

import pytest

from rbee.process_memory import private_memory

MIB = 1 << 20


@pytest.mark.parametrize(("pid", "folder"), [(None, "self"), (1234, "1234")])
def test_what_is_resident_without_what_is_shared(tmp_path, pid, folder):
    """In pages there, in bytes here."""
    (tmp_path / "proc" / folder).mkdir(parents=True)
    (tmp_path / "proc" / folder / "statm").write_text("9999 300 100 5 0 400 0\n")
    assert private_memory(pid, tmp_path) == 200 * resource.getpagesize()


def test_processes_of_this_machine():
    """What this one has written to counts. One that has ended has nothing, then it is unknown."""
    written = b"x" * (8 * MIB)
    assert private_memory() >= len(written)
    assert private_memory(os.getpid()) >= len(written)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        assert private_memory(process.pid) > 0
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert private_memory(process.pid) == 0
    with pytest.raises(OSError, match="statm"):
        private_memory(process.pid)
