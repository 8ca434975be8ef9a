"""rbee over HTTP beside another server of the same weights, in fp32 on the same cores.

    make bench-peers ARGS=--save

Runs `bench_serving.py` (closed loop, 40-word prompts, 48 tokens out, greedy) against `rbee serve` and against
`transformers serve --continuous-batching`, which has a virtual environment of its own. One server runs at a time, in
turn in every round, each started anew. Both load the same folder of float32 weights. rbee takes its torch runner,
unless --runner names another. vLLM's CPU build has no published wheel: its figures are of another day and only cited,
in `--cited` as tok/s by concurrency.
"""

from __future__ import annotations

import contextlib
import json
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.error import URLError
from urllib.request import urlopen

from engine_rig import float_folder, model_folder
from own_server import OwnServer
from program import argument_parser, finish
from saving import table

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

_HERE = Path(__file__).parent
_START_TIMEOUT = 300.0


@contextlib.contextmanager
def rbee_server(folder: Path, runner: str) -> Iterator[str]:
    """`rbee serve`, ready, at the yielded URL."""
    server = OwnServer("--model", str(folder), "--runner", runner)
    try:
        yield server.url
    finally:
        server.stop()


@contextlib.contextmanager
def transformers_server(folder: Path, command: str) -> Iterator[str]:
    """`transformers serve` with continuous batching, ready, at the yielded URL."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [command, "serve", str(folder), "--continuous-batching", "--device", "cpu", "--dtype", "float32",
         "--host", "127.0.0.1", "--port", str(port)],
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + _START_TIMEOUT
        while True:
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit("transformers serve did not get ready; its error is above.")
            with contextlib.suppress(URLError, ConnectionError), urlopen(f"{url}/health", timeout=5):
                break
            time.sleep(0.5)
        yield url
    finally:
        process.terminate()
        try:
            process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def measure(url: str, model: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """The levels of one run of bench_serving.py."""
    done = subprocess.run(
        [sys.executable, str(_HERE / "bench_serving.py"), url, "--concurrency", options.concurrency, "--rounds", "1",
         "--model", model, "--chat", "--timeout", "900"],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )  # fmt: skip
    levels: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])["levels"]
    return levels


def main() -> None:
    """Measure both in turns, and report."""
    parser = argument_parser(__doc__, "peers.{json,md}", rounds=2)
    parser.add_argument("--model", default="smollm2-135m-instruct", help="as `rbee serve` takes it")
    parser.add_argument("--transformers", required=True, metavar="PATH", help="the other environment's `transformers`")
    parser.add_argument("--concurrency", default="1,8,32", help="comma-separated levels (default %(default)s)")
    parser.add_argument("--runner", default="torch", help="of rbee (default torch, for the same arithmetic)")
    parser.add_argument(
        "--cited", default="1:14.4,8:56.2,32:74.7", help="vLLM CPU's tok/s by concurrency (default %(default)s)"
    )
    options = parser.parse_args()
    folder = float_folder(model_folder(options.model))
    cited = {int(level): float(rate) for level, rate in (pair.split(":") for pair in options.cited.split(","))}

    rounds: dict[str, list[list[dict[str, Any]]]] = {"rbee": [], "transformers serve": []}
    for _ in range(options.rounds):
        with rbee_server(folder, options.runner) as url:
            rounds["rbee"].append(measure(url, "", options))
        with transformers_server(folder, options.transformers) as url:
            rounds["transformers serve"].append(measure(url, str(folder), options))

    rows, figures = [], []
    for number, concurrency in enumerate(int(level) for level in options.concurrency.split(",")):
        figure: dict[str, Any] = {"concurrency": concurrency, "vllm_cpu_cited_tok_s": cited.get(concurrency)}
        for name, results in rounds.items():
            levels = [result[number] for result in results]
            for key in ("tok_s", "ttft_ms_p50", "itl_ms_p50", "itl_ms_p99", "failed"):
                figure[f"{name}: {key}"] = round(statistics.median(level[key] for level in levels), 2)
        ours = figure["rbee: tok_s"]
        figure["over_transformers"] = round(ours / figure["transformers serve: tok_s"], 2)
        figure["over_vllm_cited"] = round(ours / cited[concurrency], 2) if concurrency in cited else None
        figures.append(figure)
        for name in rounds:
            keys = ("tok_s", "ttft_ms_p50", "itl_ms_p50", "itl_ms_p99", "failed")
            rows.append([str(concurrency), name, *(f"{figure[f'{name}: {key}']:g}" for key in keys)])
    text = table(["c", "", "tok/s", "TTFT p50 ms", "ITL p50 ms", "ITL p99 ms", "failed"], rows)
    for figure in figures:
        text += (
            f"\n\nc = {figure['concurrency']}: {figure['over_transformers']} times transformers serve of the same run "
            f"(target 2), {figure['over_vllm_cited']} times the cited figure of vLLM's CPU build (target 1.3)."
        )
    result = {"benchmark": "peers", "runner": options.runner, "levels": figures}
    finish(options, "peers", "rbee beside transformers serve", text, result)


if __name__ == "__main__":
    main()
