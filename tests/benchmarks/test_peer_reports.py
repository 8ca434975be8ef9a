"""What the programs that compare with other engines, and bench_serving, make of figures; bench_quality on weights."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
PATIENCE = 300.0


@pytest.fixture(autouse=True)
def _programs(monkeypatch):
    """The programs are modules here."""
    monkeypatch.syspath_prepend(BENCHMARKS)


def test_quality_judges_by_divergence_and_by_the_best_token():
    """KL is from the reference to the other, in nats and by token; top-1 looks at the two best tokens alone."""
    import bench_quality

    p, q = np.array([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]]), np.array([[0.2, 0.5, 0.3], [0.1, 0.1, 0.8]])
    piece = bench_quality.Window("text", [1, 2], chunk=64)
    piece.log_p = bench_quality.log_softmax(np.log(p).astype(np.float32))
    divergence, same = bench_quality.judge(piece, (np.log(q) + 7).astype(np.float32))
    expected = 0.5 * np.log(0.5 / 0.2) + 0.3 * np.log(0.3 / 0.5) + 0.2 * np.log(0.2 / 0.3)
    assert divergence == pytest.approx([expected, 0.0], abs=1e-6)
    assert same.tolist() == [False, True]


def test_windows_are_computed_in_chunks_that_cover_them():
    """Whole chunks, then what is left; token by token is a chunk of 1."""
    import bench_quality

    assert bench_quality.Window("text", list(range(130)), chunk=64).chunks == [64, 64, 2]
    assert bench_quality.Window("text", list(range(128)), chunk=64).chunks == [64, 64]
    assert bench_quality.Window("text", [1, 2, 3], chunk=1).chunks == [1, 1, 1]


def test_comparison_with_peers_names_what_is_missed():
    """A ratio is of the rounds' median tokens per second, ours by the runner alone; each peer has its own target."""
    import versus_peers
    from versus_peers import Shape, Taken

    rounds = {
        Shape("decode", 8): {
            "rbee": [Taken(10, 16), Taken(9, 90), Taken(40, 16)],
            "slow": [Taken(30, 30), Taken(31, 31), Taken(2, 2)],
            "quick": [Taken(29, 29)] * 3,
        },
        Shape("decode", 2): {"rbee": [Taken(10, 10)], "slow": [Taken(5, 5)], "quick": [Taken(1, 1)]},
    }
    targets = {("decode", 8): {"": 3.0, "qu": 2.9, "quick": 2.95}, ("decode", 2): {"slow": 0.5}}
    text, (eight, two) = versus_peers.report(rounds, ["slow", "quick"], targets)
    assert eight["tok_s"] == {"rbee": 800.0, "slow": 266.7, "quick": 275.9}
    assert eight["whole_step_tok_s"] == 500.0
    assert eight["ratio"] == {"slow": 3.0, "quick": 2.9}
    assert eight["met"] == {"slow": True, "quick": False}
    assert two["ratio"] == {"slow": 0.5, "quick": 0.1}
    assert two["met"] == {"slow": True}
    assert "| 3.00 (met: 3) | 2.90 (MISSED: 2.95) |" in text
    assert "| 0.50 (met: 0.5) | 0.10 |" in text


def test_shares_of_the_bandwidth():
    """Of each contender: what a token's bytes take at the least over what it takes."""
    import versus_peers
    from engine_floors import Machine

    machine = Machine(bandwidth=20e9, peak_macs=1.0)
    shares = versus_peers.bandwidth_shares({"rbee": 25.0, "slow": 10.0}, 700_000_000, machine)
    assert shares == {"rbee": 0.875, "slow": 0.35}
    assert "20.0 GB/s" in versus_peers.floors_text(shares, machine, 0.88)
    assert "rbee 0.88 (target 0.88: MISSED); slow 0.35." in versus_peers.floors_text(shares, machine, 0.88)
    assert "rbee 0.88; slow" in versus_peers.floors_text(shares, machine, None)


class FakeContender:
    """Takes 10 s of the clock, in which it computes for 15 s, "spinner" for 4 and the rest of the machine for 1."""

    def __init__(self, name, clock, taken, spinner=None):
        self.name, self.used, self.taken = name, 0, taken
        self._clock, self._spinner = clock, spinner or self

    def cpu_seconds(self):
        """All of it so far."""
        return self.used

    def measure(self, *_):
        """Let 10 s pass."""
        self._clock["now"] += 10
        self._clock["busy"] += 20
        self.used += 15
        self._spinner.used += 4
        return self.taken


def test_comparison_knows_what_those_who_wait_use():
    """A contender's own time while it is measured does not count; everybody else's does, as a share of a core."""
    from versus_peers import Shape, Taken, Watch

    clock = {"now": 0, "busy": 0}
    shape, taken = Shape("decode", 1), Taken(1.0, 2.0)
    spinner = FakeContender("spinner", clock, taken)
    quiet = FakeContender("quiet", clock, taken, spinner)
    watch = Watch([quiet, spinner], now=lambda: clock["now"], busy=lambda: clock["busy"])
    assert watch.measure(quiet, shape, [], 1) == taken
    assert watch.measure(spinner, shape, [], 1) == taken
    assert watch.idle_shares() == {"quiet": 0.0, "spinner": 0.4, "anybody else": 0.1}


def test_serving_targets_hold_for_throughput_and_first_token():
    """Each target is judged by itself, and the cited figures stand beside."""
    import serving_targets

    level = {"concurrency": 1, "tok_s": 131.0, "ttft_ms_p50": 111.0, "itl_ms_p50": 7.0}
    text = serving_targets.compared([level, level | {"concurrency": 2}])
    assert "c = 1: 131 tok/s (to reach: 130): met; TTFT 111 ms (at most 110): MISSED." in text
    assert "| 1 | llama-server Q4_1, 32 slots (cited) | 55.7 | 286 | 11.8 |" in text
    assert "c = 2" not in text
    assert serving_targets.tiny_verdict(16, 5999.0).startswith("c = 16: 5,999 tok/s (to reach: 6,000): MISSED")
    assert serving_targets.tiny_verdict(3, 5999.0) == ""


def test_floors_count_what_a_step_reads_and_multiplies(tmp_path):
    """Weights once per step and MACs per token, of matrices only; an embedding counts if it is the head too."""
    import gguf
    from engine_floors import Work

    config = {"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2, "num_key_value_heads": 2}
    (tmp_path / "config.json").write_text(json.dumps(config))

    def work(*names):
        writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama")
        for name in names:
            shape = (64,) if name.endswith("norm.weight") else (32, 64)
            writer.add_tensor(name, np.zeros(shape, np.float16))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return Work.of(tmp_path, tmp_path / "model.gguf")

    tied = work("token_embd.weight", "blk.0.attn_q.weight", "output_norm.weight")
    assert (tied.weights, tied.weight_bytes) == (2 * 2048, 2 * 4096)
    assert (tied.kv_bytes, tied.attention_macs) == (2 * 2 * 2 * 16 * 2, 2 * 2 * 4 * 16)
    assert tied.bytes_of(batch=3, context=10) == 2 * 4096 + 3 * 10 * tied.kv_bytes
    assert tied.macs_of(batch=3, context=10) == 3 * (2 * 2048 + 10 * tied.attention_macs)
    untied = work("token_embd.weight", "blk.0.attn_q.weight", "output_norm.weight", "output.weight")
    assert untied.weights == tied.weights


def test_quality_of_the_torch_runner_is_that_of_the_reference(tmp_path):
    """The same weights in the same precision: no divergence, in chunks and token by token, and all targets are met."""
    model, text = tmp_path / "tiny", tmp_path / "text.txt"
    subprocess.run([sys.executable, BENCHMARKS / "make_tiny_model.py", model], check=True, timeout=PATIENCE)
    text.write_text("The server keeps its promises. " * 40)
    options = ["--runner", "torch", "--model", model, "--tokens", "70", "--text", text, text]
    run = subprocess.run(
        [sys.executable, BENCHMARKS / "bench_quality.py", *options],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    [torch] = json.loads(run.stdout.splitlines()[-1])["contenders"]
    assert torch["tokens"] == 140
    assert [window["chunk"] for window in torch["windows"]] == [64, 1]
    assert 0 <= torch["kl_mean"] <= torch["kl_max"] < 1e-6
    assert torch["top1"] == 1.0
    assert "MISSED" not in run.stderr
