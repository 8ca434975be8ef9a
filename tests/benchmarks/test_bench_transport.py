"""benchmarks/bench_transport.py with tiny numbers, and only the contenders that need no further package."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
PATIENCE = 120.0


def command(*options: str) -> list[str]:
    """The program, with warnings as errors."""
    return [sys.executable, "-W", "error", str(BENCHMARKS / "bench_transport.py"), *options]


def finished(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    """The program's end, with all it wrote."""
    environment = {**os.environ, "PYTHONPATH": str(BENCHMARKS)}
    return subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False)


def test_every_contender_delivers_everything_and_is_reported():
    """Two levels and a saturated pass: the last line is JSON, with all tokens and a cost for each contender."""
    names = ["rbee", "mp_queue", "mp_pipe", "eventfd_each"]
    options = "--streams 1,70 --step-ms 2 --steps 10 --rounds 1 --saturated-seconds 0.1 --no-syscalls --contenders"
    run = finished(command(*options.split(), ",".join(names)))
    assert run.returncode == 0, run.stderr
    result = json.loads(run.stdout.splitlines()[-1])
    assert [(level["streams"], level["contender"]) for level in result["levels"]] == [
        (streams, name) for streams in (1, 70) for name in names
    ]
    for level in result["levels"]:
        assert level["tokens"] == (result["warmup_steps"] + 10) * level["streams"]
        assert 0 < level["delivery_us"]["p50"] <= level["delivery_us"]["p99"] <= level["delivery_us"]["max"]
        assert level["intended_us"]["p50"] >= level["delivery_us"]["p50"]
        assert level["producer_cpu_us_per_token"] > 0 < level["consumer_cpu_us_per_token"]
    assert [level["contender"] for level in result["saturated"]] == names
    for level in result["saturated"]:
        assert level["tokens"] % 70 == 0
        assert level["tokens_per_s"] > 0
    assert [floor["step_ms"] for floor in result["floors"]] == [2]
    assert result["targets"] == []  # no ZeroMQ, no 256 streams


@pytest.mark.parametrize(
    ("fault", "message"), [("repeat", "lost or repeated tokens"), ("swap", "delivered a wrong token")]
)
def test_mistakes_of_a_contender_end_the_run(fault, message):
    """A token that is in another stream than the one it was sent to is noticed, and the run fails with its name."""
    run = finished([sys.executable, str(Path(__file__).with_name("faulty_contender.py")), fault])
    assert run.returncode != 0
    assert f"faulty {message}" in run.stderr


def test_interrupt_leaves_nothing_behind(tmp_path):
    """Ctrl-C in the middle of a run ends both processes and removes the folder of the sockets."""
    options = ["--streams=1", "--step-ms=10", "--steps=100000", "--contenders=mp_pipe"]
    program = subprocess.Popen(
        command(*options),
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stderr=subprocess.PIPE,
    )
    deadline = time.monotonic() + PATIENCE
    try:
        while len(children := psutil.Process(program.pid).children()) < 2:
            assert time.monotonic() < deadline, "the two processes do not start"
        assert list(tmp_path.iterdir())
        program.send_signal(signal.SIGINT)
        program.communicate(timeout=PATIENCE)
        psutil.wait_procs(children, timeout=PATIENCE)
    finally:
        program.kill()
        program.communicate()
    assert program.returncode != 0
    assert not [child for child in children if child.is_running()]
    assert not list(tmp_path.iterdir())
