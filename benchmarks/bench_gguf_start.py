"""What a GGUF file costs to start: seconds until it is served, memory, and disk; cold (empty cache) and warm.

    python benchmarks/bench_gguf_start.py FILE.gguf [...] --vs-llama-cpp build/peers/llama-cpp-avx2/bin/python

Per round and file, in turn: `rbee serve FILE` with an empty cache folder, the same again, and a Python that loads the
file with llama.cpp and computes one token. The file is read once before, so that its pages are in memory. Seconds are
from the start of the process to `rbee: ready`, and to llama.cpp's token. Memory is the peak resident set (VmHWM) of
the server and of the engine, 16 tokens later; llama.cpp's counts the mapped file.
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

from program import argument_parser, finish, progress
from saving import table

import rbee.cli

_MB = 1e6
_PEER = """
import json, sys, llama_cpp
model = llama_cpp.Llama(sys.argv[1], n_ctx=512, n_threads=int(sys.argv[2]), verbose=False)
model.eval([1])
print(json.dumps(open("/proc/self/status").read()), flush=True)
"""


def peak_mb(status: str) -> float:
    """VmHWM of a /proc/PID/status."""
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024 / _MB


def own_start(file: Path, cache: Path, options: list[str]) -> dict[str, float]:
    """One `rbee serve` until it is ready, and 16 tokens."""
    command = [sys.executable, "-m", rbee.cli.__name__, "serve", str(file), "--port", "0", *options]
    environment = os.environ | {"RBEE_CACHE": str(cache)}
    started = time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stdout is not None
            url = ""
            for line in process.stdout:
                url = line.split()[-1] if "listening on" in line else url
                if line.startswith("rbee: ready"):
                    break
            else:
                raise SystemExit(f"rbee serve {file} ended before it was ready; its error is above.")
            seconds = time.monotonic() - started
            body = json.dumps({"prompt": "Once upon a time", "max_tokens": 16, "ignore_eos": True}).encode()
            request = urllib.request.Request(f"{url}/v1/completions", body, {"Content-Type": "application/json"})
            with urllib.request.urlopen(request) as response:
                response.read()
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            engine = max(peak_mb(Path(f"/proc/{child}/status").read_text()) for child in children)
            server = peak_mb(Path(f"/proc/{process.pid}/status").read_text())
        finally:
            process.send_signal(signal.SIGTERM)
    disk = sum(path.stat().st_size for path in cache.rglob("*") if path.is_file())
    return {"seconds": seconds, "engine_mb": engine, "server_mb": server, "disk_mb": disk / _MB}


def peer_start(python: Path, file: Path, threads: int) -> dict[str, float]:
    """One process of llama.cpp until it has computed a token."""
    started = time.monotonic()
    command = [str(python), "-c", _PEER, str(file), str(threads)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    seconds = time.monotonic() - started
    return {"seconds": seconds, "engine_mb": peak_mb(json.loads(done.stdout))}


def measure(file: Path, options: Any, serve_args: list[str]) -> list[dict[str, Any]]:
    """A row per way."""
    file.read_bytes()
    runs: dict[str, list[dict[str, float]]] = {}
    for _ in range(options.rounds):
        with tempfile.TemporaryDirectory() as cache:
            for way in ("rbee, cold", "rbee, warm"):
                runs.setdefault(way, []).append(own_start(file, Path(cache), serve_args))
        if options.vs_llama_cpp:
            runs.setdefault("llama.cpp", []).append(peer_start(options.vs_llama_cpp, file, options.threads))
    rows = []
    for way, found in runs.items():
        medians = {name: round(statistics.median(run[name] for run in found), 2) for name in found[0]}
        rows.append({"file": file.name, "file_mb": round(file.stat().st_size / _MB, 1), "way": way, **medians})
        progress(f"{file.name}: {way}: {medians}")
    return rows


def main() -> None:
    """Measure all files."""
    parser = argument_parser(__doc__, "gguf_start.{json,md}", rounds=3)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--vs-llama-cpp", type=Path, metavar="PYTHON", help="of an environment with llama-cpp-python")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="default: one per core")
    parser.add_argument("--kv-cache-mib", type=int, default=64, help="of rbee (default %(default)s)")
    options = parser.parse_args()
    serve_args = ["--threads", str(options.threads), "--kv-cache-mib", str(options.kv_cache_mib)]
    rows = [row for file in options.files for row in measure(file, options, serve_args)]
    columns = ["file", "file_mb", "way", "seconds", "engine_mb", "server_mb", "disk_mb"]
    report = table(columns, [[str(row.get(column, "")) for column in columns] for row in rows])
    finish(options, "gguf_start", "Starting a GGUF file", report, {"benchmark": "gguf_start", "rows": rows})


if __name__ == "__main__":
    main()
