"""Cache entries: whole or absent, whatever happens to whoever makes them."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rbee.errors import ModelError
from rbee.models import cache as cache_module

BUILDER = """
import os, signal, sys
from pathlib import Path
from rbee.models import cache

class Silent:
    def stage(self, name, total=0): print(name, flush=True)
    def done(self, amount): pass
    def note(self, text): pass

def build(folder, lock_fd):
    (folder / "weights").write_bytes(b"w" * 5000)
    (folder / "config").write_bytes(b"c" * 50)
    cache.write_manifest(folder, {"format": 1})

entry, die_at = Path(sys.argv[1]), int(sys.argv[2])
seen = 0

def hook(event, arguments):
    '''Every file operation that Python audits under the cache is a crash point.'''
    global seen
    if event.partition(".")[0] in ("open", "os", "shutil", "fcntl") and "cache" in repr(arguments) + event:
        seen += 1
        if seen == die_at:
            os.kill(os.getpid(), signal.SIGKILL)

import fcntl, json, shutil  # imported before the hook, whose crash points are in ensure()
sys.addaudithook(hook)
cache.ensure(entry, build, progress=Silent())
print("operations:", seen)
"""


def run_builder(entry, die_at=0):
    """Build an entry in a process that kills itself at its crash point number `die_at`."""
    return subprocess.run(
        [sys.executable, "-c", BUILDER, str(entry), str(die_at)], capture_output=True, text=True, check=False
    )


def test_a_builder_killed_at_any_file_operation_leaves_an_entry_whole_or_absent(tmp_path):
    """At every numbered crash point the next run finds a whole entry or makes one, and no leftover remains."""
    entry = tmp_path / "cache" / "model-1.5"
    killed = 0
    absent = 0
    while True:
        shutil.rmtree(entry.parent, ignore_errors=True)
        crashed = run_builder(entry, die_at=killed + 1)
        assert cache_module.is_whole(entry) == entry.exists()
        if crashed.returncode != -signal.SIGKILL:
            break
        killed += 1
        absent += not entry.exists()
        again = run_builder(entry)
        assert again.returncode == 0, again.stderr
        assert cache_module.is_whole(entry)
        assert sorted(path.name for path in entry.parent.iterdir()) == ["model-1.5", "model-1.5.lock"]
    assert crashed.returncode == 0, crashed.stderr
    assert absent > 10
    assert killed > absent


def test_a_leftover_of_another_entry_is_removed_too(tmp_path):
    """A model that nobody asks for again does not keep its unfinished folder for ever."""
    leftover = tmp_path / "forgotten.partial"
    leftover.mkdir()
    (leftover / "weights").write_bytes(b"half")
    assert run_builder(tmp_path / "cache").returncode == 0
    assert not leftover.exists()


def test_an_unfinished_folder_whose_builder_lives_is_left_alone(tmp_path, progress):
    """Another entry's lock, held by a live process, protects its folder."""

    def build(folder, _):
        (folder / "kept").write_text("x")
        done = run_builder(tmp_path / "other")
        assert done.returncode == 0, done.stderr
        assert (folder / "kept").exists()
        cache_module.write_manifest(folder, {})

    cache_module.ensure(tmp_path / "cache-entry", build, progress=progress)
    assert cache_module.is_whole(tmp_path / "cache-entry")
    assert cache_module.is_whole(tmp_path / "other")


def blocked_on_a_lock(process):
    """Whether the kernel lists the process as waiting for an flock, before it ends."""
    while process.poll() is None:
        locks = Path("/proc/locks").read_text().splitlines()
        if any("->" in line and str(process.pid) in line.split() for line in locks):
            return True
    return False


def test_a_child_that_outlives_its_builder_still_holds_the_lock(tmp_path):
    """A killed builder's child may still be writing: the next builder waits until the kernel has closed its lock."""
    program = """
import os, signal, subprocess, sys
from pathlib import Path
from rbee.models import cache

def build(folder, lock_fd):
    subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], pass_fds=(lock_fd,))
    os.kill(os.getpid(), signal.SIGKILL)

cache.ensure(Path(sys.argv[1]), build, progress=None)
"""
    entry = tmp_path / "cache"
    with subprocess.Popen([sys.executable, "-c", program, str(entry)], stdin=subprocess.PIPE) as first:
        first.wait()
        command = [sys.executable, "-c", BUILDER, str(entry), "0"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as second:
            assert second.stdout.readline() == "waiting for another process that prepares cache\n"
            assert blocked_on_a_lock(second)
            assert (tmp_path / "cache.partial").exists()
            first.stdin.close()  # ends the child
            assert second.stdout.readline().startswith("operations:")
    assert cache_module.is_whole(entry)


@pytest.mark.parametrize("damage", ["cut", "removed", "no manifest", "bad manifest"])
def test_a_damaged_entry_is_made_again(damage, tmp_path):
    """A file that is missing or has another size than the manifest says makes the entry worthless."""
    entry = tmp_path / "cache"
    run_builder(entry)
    if damage == "cut":
        os.truncate(entry / "weights", 4999)
    elif damage == "removed":
        (entry / "config").unlink()
    elif damage == "no manifest":
        (entry / "rbee.json").unlink()
    else:
        (entry / "rbee.json").write_text("[]")
    assert not cache_module.is_whole(entry)
    assert run_builder(entry).returncode == 0
    assert cache_module.is_whole(entry)


def test_a_build_that_fails_leaves_nothing_and_passes_its_error_on(tmp_path, progress):
    """Neither entry nor unfinished folder is there after an error in between."""

    def build(folder, _):
        (folder / "weights").write_bytes(b"half")
        raise ModelError("no good")

    with pytest.raises(ModelError, match="no good"):
        cache_module.ensure(tmp_path / "entry", build, progress=progress)
    assert [path.name for path in tmp_path.iterdir()] == ["entry.lock"]


def test_a_cache_that_cannot_be_made_is_a_sentence_with_the_remedy(tmp_path, progress):
    """A file in the place of the cache folder is named, and so is RBEE_CACHE."""
    (tmp_path / "file").touch()
    with pytest.raises(ModelError, match=r"The model cache .*/file/cache cannot be used: .*RBEE_CACHE"):
        cache_module.ensure(tmp_path / "file" / "cache" / "entry", lambda *_: None, progress=progress)


def test_a_disk_that_fills_up_is_a_sentence_and_leaves_nothing(tmp_path, progress):
    """The kernel's own "no space left" half-way through a build: the folder is named, and the half is removed."""

    def build(folder, lock_fd):  # noqa: ARG001 - what `ensure` calls
        (folder / "weights").write_bytes(bytes(1 << 10))
        Path("/dev/full").write_bytes(b"more")

    with pytest.raises(ModelError) as caught:
        cache_module.ensure(tmp_path / "entry", build, progress=progress)
    message = str(caught.value)
    assert message.startswith(f"There is not enough space in {tmp_path}: a file could not be written and ")
    assert message.endswith("are free. Free some, or set RBEE_CACHE to a folder on another disk.")
    assert [path.name for path in tmp_path.iterdir()] == ["entry.lock"]


def test_the_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    """RBEE_CACHE wins over XDG_CACHE_HOME, which wins over the home folder."""
    monkeypatch.delenv("RBEE_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_module.cache_folder() == tmp_path / ".cache" / "rbee" / "models"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_module.cache_folder() == tmp_path / "xdg" / "rbee" / "models"
    monkeypatch.setenv("RBEE_CACHE", "~/own")
    assert cache_module.cache_folder() == tmp_path / "own"
