"""benchmarks/aborts.py with hundreds of requests: a server gives back all that clients held who went away."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from rbee.config import DEFAULT_MODEL

ABORTS = Path(__file__).parents[2] / "benchmarks" / "aborts.py"
# kB per aborted request that its process may have grown by: a request that leaked anything of its own (its prompt, its
# sequence, a task) would leave more. An allocator that has not met its largest load yet takes less.
PER_REQUEST = 4

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(("model", "aborts"), [("synthetic", 600), (DEFAULT_MODEL, 64)])
def test_aborted_requests_leave_nothing(model, aborts):
    """Whatever state they were in, rings, KV blocks and descriptors are those of before, and memory is flat."""
    options = ["--model", model, "--aborts", str(aborts)]
    done = subprocess.run([sys.executable, ABORTS, *options], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    before, after = result["before"], result["after"]
    assert (after["rings"], after["blocks"], after["fds"]) == (0, 0, before["fds"])
    if model == "synthetic":
        for process in ("server_kb", "engine_kb"):
            assert after[process] - before[process] < PER_REQUEST * aborts, process
