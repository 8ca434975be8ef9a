"""Builds the core's own unit tests with each sanitizer and runs them; they are in native/tests."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

NATIVE = Path(__file__).resolve().parents[2] / "native"
CMAKE = Path(sys.executable).parent / "cmake"  # of the development requirements


def without_address_randomisation() -> list[str]:
    """A command prefix, because older ThreadSanitizers stumble over address spaces with much randomness.

    Empty where containers forbid it.
    """
    setarch = shutil.which("setarch")
    works = setarch and subprocess.run([setarch, "-R", "true"], capture_output=True, check=False).returncode == 0
    return [setarch, "-R"] if works else []


@pytest.mark.parametrize("sanitizers", ["address,undefined", "thread"])
def test_core_under(sanitizers, tmp_path):
    """Layout, both roles in one thread, and both roles as threads over one mapping, with every warning an error."""
    for command in (
        [CMAKE, "-S", NATIVE, "-B", tmp_path, "-DRBEE_BUILD_TESTS=ON", f"-DRBEE_SANITIZE={sanitizers}"],
        [CMAKE, "--build", tmp_path, "--parallel", "2"],
        [*without_address_randomisation(), tmp_path / "rbee_core_tests"],
    ):
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        assert done.returncode == 0, done.stdout
    assert "ok      a step beside the arming is never missed" in done.stdout
