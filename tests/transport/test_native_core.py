"""The core's own unit tests with each sanitizer, and its stress program: native/tests."""

from __future__ import annotations

import json
import subprocess

import pytest

from tests.transport.mutations import ADDRESS, THREAD, Check

pytestmark = pytest.mark.slow


KEY_TESTS = {
    "rbee_transport_tests": [
        "a step beside the arming is never missed",
        "whatever is scribbled, nothing leaves the mapping",
    ],
    "rbee_kernel_tests": ["attention is softmax of scores times values"],
    "rbee_model_tests": ["every chunk is done once, after the phases before", "model: long contexts are put together"],
}


@pytest.mark.parametrize(
    "check", [pytest.param(check, marks=pytest.mark.compiled(check.name), id=check.name) for check in (ADDRESS, THREAD)]
)
def test_core_under(check: Check, compiled: dict[str, tuple[int, str]]) -> None:
    """Transport, kernels, and the model on its thread pool pass under the sanitizer, with every warning an error."""
    assert compiled.keys() == set(check.targets)
    for target, (code, output) in compiled.items():
        assert code == 0, output
        assert all(f"ok      {name}\n" in output for name in KEY_TESTS[target]), output


@pytest.mark.compiled("stress")
def test_stress(compiled: str) -> None:
    """A million steps between two processes lose no wakeup and lose, repeat or confuse no token."""
    done = subprocess.run([compiled], capture_output=True, text=True, check=False)
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
