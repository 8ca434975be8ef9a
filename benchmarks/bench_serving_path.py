"""What the serving path itself can carry: tokens per second over HTTP with models that cost next to nothing.

    python benchmarks/bench_serving_path.py --save

Runs `bench_serving.py` (closed loop, 40-word prompts, 64 tokens out, client on the same cores) against three servers of
its own, in turn in every round:
  tiny      the model of `make_tiny_model.py` with the runner that --runner names: 2 layers, 64 wide, 49,152 tokens
  no model  the synthetic model with steps of 0 ms: scheduler, sampler, rings, drain, HTTP and client, and no forward
  paced     the synthetic model with steps of 1 ms
The difference of the first two is the model's cost. The engine's own step time (p50, from its arena) stands beside.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from own_server import OwnServer
from program import argument_parser, finish, integers, progress
from saving import table
from serving_targets import TINY_TARGETS, tiny_verdict

_HERE = Path(__file__).parent


def _measure(server: OwnServer, concurrency: int, requests: int) -> dict[str, Any]:
    """One level of bench_serving.py, and the engine's step time meanwhile."""
    options = ["--concurrency", str(concurrency), "--requests", str(requests), "--rounds", "1", "--tokens", "64"]
    before = server.sample()
    done = subprocess.run(
        [sys.executable, str(_HERE / "bench_serving.py"), server.url, "--ignore-eos", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        check=True,
    )
    after = server.sample()
    level: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])["levels"][0]
    step = after.histograms["step"].minus(before.histograms["step"]).quantile(0.5) or 0.0
    return {key: level[key] for key in ("tok_s", "ttft_ms_p50", "itl_ms_p50", "client_cpu_percent")} | {
        "step_ms_p50": round(step / 1e6, 3)
    }


def main() -> None:
    """Measure every server at every concurrency, round by round."""
    parser = argument_parser(__doc__, "serving_path.{json,md}", rounds=3)
    parser.add_argument("--concurrency", type=integers, default="1,16,64", help="levels (default %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="that compute the tiny model (default 2)")
    parser.add_argument("--runner", default="auto", help="of the tiny model, as `rbee serve` takes it (default auto)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, str(_HERE / "make_tiny_model.py"), folder], check=True, stdout=sys.stderr)
        synthetic = ["--model", "synthetic", "--synthetic-step-ms"]
        servers = {
            "tiny": OwnServer("--model", folder, "--threads", str(options.threads), "--runner", options.runner),
            "no model": OwnServer(*synthetic, "0"),
            "paced": OwnServer(*synthetic, "1"),
        }
        rows: dict[tuple[str, int], list[dict[str, Any]]] = {
            (name, level): [] for name in servers for level in options.concurrency
        }
        try:
            for number in range(options.rounds):
                for (name, level), runs in rows.items():
                    progress(f"round {number + 1}/{options.rounds}, {name}, c={level}")
                    runs.append(_measure(servers[name], level, max(24, 6 * level)))
        finally:
            for server in servers.values():
                server.stop()
    medians: list[dict[str, Any]] = [
        {"server": name, "concurrency": level}
        | {key: round(statistics.median(run[key] for run in runs), 3) for key in runs[0]}
        for (name, level), runs in rows.items()
    ]
    rows_of_table = [
        [
            row["server"],
            str(row["concurrency"]),
            f"{row['tok_s']:,.0f}",
            f"{TINY_TARGETS.get(row['concurrency'], 0):,}",
            f"{row['ttft_ms_p50']:.2f}",
            f"{row['itl_ms_p50']:.3f}",
            f"{row['step_ms_p50']:.2f}",
            f"{row['client_cpu_percent']:.0f}%",
        ]
        for row in medians
    ]
    head = ["server", "c", "tok/s", "to reach", "TTFT p50, ms", "ITL p50, ms", "engine step p50, ms", "client CPU"]
    report = f"Medians of {options.rounds} rounds.\n\n{table(head, rows_of_table)}"
    for row in medians:
        if row["server"] == "tiny" and (verdict := tiny_verdict(row["concurrency"], row["tok_s"])):
            report += f"\n\n{verdict}"
    result: dict[str, Any] = {
        "benchmark": "serving_path",
        "runner": options.runner,
        "rounds": options.rounds,
        "threads": options.threads,
        "levels": medians,
    }
    finish(options, "serving_path", "The serving path", report, result)


if __name__ == "__main__":
    main()
