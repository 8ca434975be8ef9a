"""Builds and runs the core's own unit tests with each sanitizer, and its stress program: native/tests."""

from __future__ import annotations

import contextlib
import json
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.transport.mutations import ADDRESS, CMAKE, NATIVE, THREAD, Check, without_address_randomisation

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.slow


KEY_TESTS = {
    "rbee_transport_tests": [
        "a step beside the arming is never missed",
        "whatever is scribbled, nothing leaves the mapping",
    ],
    "rbee_kernel_tests": ["attention is softmax of scores times values"],
    "rbee_model_tests": ["every chunk is done once, after the phases before", "model: long contexts are put together"],
}


@pytest.mark.parametrize("check", [ADDRESS, THREAD], ids=lambda check: check.name)
def test_core_under(check: Check, tmp_path: Path) -> None:
    """Transport, kernels, and the model on its thread pool pass under the sanitizer, with every warning an error."""
    check.configure(NATIVE, tmp_path)
    check.build(tmp_path)
    with contextlib.ExitStack() as ending:
        running = {}
        for target in check.targets:
            command: list[str | Path] = [*without_address_randomisation(), tmp_path / target]
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            running[target] = ending.enter_context(process)
            ending.callback(process.kill)
        for target, process in running.items():
            output, _ = process.communicate()
            assert process.returncode == 0, output
            assert all(f"ok      {name}\n" in output for name in KEY_TESTS[target]), output


def test_stress(tmp_path: Path) -> None:
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
