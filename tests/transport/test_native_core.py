"""Builds and runs the core's own unit tests with each sanitizer, and its stress program: native/tests."""

from __future__ import annotations

import json
import subprocess

import pytest

from tests.transport.mutations import ADDRESS, CMAKE, NATIVE, THREAD, without_address_randomisation


@pytest.mark.parametrize("check", [ADDRESS, THREAD], ids=lambda check: check.name)
def test_core_under(check, tmp_path):
    """Layout, fuzz, both roles in one thread and as threads over one mapping, with every warning an error."""
    check.configure(NATIVE, tmp_path)
    check.build(tmp_path)
    command = [*without_address_randomisation(), tmp_path / check.target]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert "ok      a step beside the arming is never missed" in done.stdout
    assert "ok      whatever is scribbled, nothing leaves the mapping" in done.stdout


def test_stress(tmp_path):
    """A million steps between two processes lose no wakeup and lose, repeat or confuse no token."""
    subprocess.run([CMAKE, "-S", NATIVE, "-B", tmp_path, "-DRBEE_BUILD_TESTS=ON"], check=True, capture_output=True)
    subprocess.run([CMAKE, "--build", tmp_path, "--target", "rbee_core_stress"], check=True, capture_output=True)
    done = subprocess.run([tmp_path / "rbee_core_stress"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    seen = json.loads(done.stdout)
    assert seen["steps"] >= 1_000_000
    assert not any(
        seen[wrong] for wrong in ("missed_server_wakeups", "missed_engine_wakeups", "lost", "repeated", "foreign")
    )
    # Otherwise nothing of the interesting kind has happened.
    assert all(
        seen[kind]
        for kind in ("cancels", "full_rings", "wakes_written", "wakes_elided", "server_sleeps", "engine_sleeps")
    )
