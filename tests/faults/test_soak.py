"""benchmarks/soak.py for seconds instead of minutes: every stream of its clients is accounted for."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SOAK = Path(__file__).parents[2] / "benchmarks" / "soak.py"

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("seed", [1, 2])
def test_every_stream_is_accounted_for(seed):
    """Engines die beside clients that read, leave and are slow; none is told nothing, and nothing is left."""
    options = ["--minutes", "0.15", "--every", "4", "--streams", "48", "--step-ms", "2", "--seed", str(seed)]
    done = subprocess.run([sys.executable, SOAK, *options], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["lost"] == 0
    assert sum(result["ends"].values()) == result["streams"]
    assert result["left"] == {"rings": 0, "fds": 0}
    assert result["kills"] >= 1
    # Otherwise nothing of the interesting kind has happened.
    assert all(result["ends"].get(kind, 0) for kind in ("finished", "left", "engine_died")), result["ends"]
