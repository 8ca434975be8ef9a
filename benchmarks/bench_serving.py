"""TTFT, ITL and throughput of any OpenAI-compatible server, at several concurrencies.

    python benchmarks/bench_serving.py http://127.0.0.1:8000 --concurrency 1,8,32
    python benchmarks/bench_serving.py --save

Without a URL it starts an `rbee serve` of its own (--serve: its options), and prints the targets for the default model
and the figures that other servers reached on another machine and day.

Closed loop: at concurrency c, c clients each send their next request when the last one ended. Definitions, all on the
client's CLOCK_MONOTONIC, stamped when the bytes were read:
  TTFT  request written -> first frame with text read
  ITL   gap between successive frames with text of one stream
  TPOT  (last frame with text - first) / (tokens - 1), per request
  tok/s completion tokens of all requests / wall time of the level
Tokens are the server's own `usage` when it sends one, otherwise frames with text.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import re
import shlex
import statistics
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.request import Request, urlopen

import uvloop
from own_server import OwnServer
from program import argument_parser, finish, integers, progress
from saving import table
from serving_targets import compared
from sse_client import Stream, http_request, run_stream

if TYPE_CHECKING:
    import argparse

_WORDS = (
    "river stone window garden quiet engine letter harbor market winter silver morning travel doctor school "
    "forest bridge island captain summer kitchen mountain station picture answer village teacher ocean number"
).split()


@dataclass(frozen=True)
class Measured:
    """What one finished stream showed, times in ms."""

    ttft: float
    gaps: list[float]
    tpot: float
    tokens: int


def prompt_of(words: int, seed: int) -> str:
    """A prompt of `words` words that no other request shares a prefix with."""
    pick = random.Random(seed)
    return f"Story {seed}: " + " ".join(pick.choice(_WORDS) for _ in range(words))


def _has_text(chunk: dict[str, Any]) -> bool:
    return any(choice.get("text") or (choice.get("delta") or {}).get("content") for choice in chunk.get("choices", []))


def measure(stream: Stream) -> Measured | str:
    """The figures of one stream, or why there are none."""
    frames = stream.frames()
    if stream.error:
        return stream.error
    chunks = [(frame.read_ns, json.loads(frame.data)) for frame in frames if frame.data != "[DONE]"]
    errors = [chunk["error"] for _, chunk in chunks if "error" in chunk]
    if errors:
        return str(errors[0])
    times = [read_ns for read_ns, chunk in chunks if _has_text(chunk)]
    if not times:
        return "no frame with text"
    usage = next((chunk["usage"] for _, chunk in reversed(chunks) if chunk.get("usage")), None)
    tokens = usage["completion_tokens"] if usage else len(times)
    gaps = [(b - a) / 1e6 for a, b in itertools.pairwise(times)]
    return Measured(
        ttft=(times[0] - stream.sent_ns) / 1e6,
        gaps=gaps,
        tpot=(times[-1] - times[0]) / 1e6 / max(1, tokens - 1),
        tokens=tokens,
    )


def percentile(values: list[float], percent: float) -> float:
    """The value at that rank, 0 to 100; NaN if there are none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, round(percent / 100 * (len(ordered) - 1)))] if ordered else float("nan")


async def run_level(
    options: argparse.Namespace, model: str, concurrency: int, requests: int, seed: int
) -> dict[str, Any]:
    """Run one concurrency level and return its figures."""
    pending = iter(range(requests))
    streams: list[Stream] = []

    async def client() -> None:
        for number in pending:
            prompt = prompt_of(options.words, seed + number)
            payload: dict[str, Any] = {
                "model": model,
                "max_tokens": options.tokens,
                "temperature": 0,
                "stream": True,
                "stream_options": {"include_usage": True},
            }
            if options.ignore_eos:
                payload["ignore_eos"] = True
            if options.chat:
                path, payload["messages"] = "/v1/chat/completions", [{"role": "user", "content": prompt}]
            else:
                path, payload["prompt"] = "/v1/completions", prompt
            host, port, request = http_request(options.url, path, payload, options.api_key)
            streams.append(await run_stream(host, port, request, options.timeout))

    started, cpu_started = time.monotonic(), time.process_time()
    await asyncio.gather(*(client() for _ in range(concurrency)))
    wall, cpu = time.monotonic() - started, time.process_time() - cpu_started
    results = [measure(stream) for stream in streams]
    failures = [result for result in results if isinstance(result, str)]
    measured = [result for result in results if isinstance(result, Measured)]
    gaps = [gap for result in measured for gap in result.gaps]
    tokens = sum(result.tokens for result in measured)
    return {
        "concurrency": concurrency,
        "requests": requests,
        "failed": len(failures),
        "first_failure": failures[0] if failures else None,
        "tokens": tokens,
        "wall_s": round(wall, 3),
        "tok_s": round(tokens / wall, 1),
        "ttft_ms_p50": round(percentile([result.ttft for result in measured], 50), 2),
        "ttft_ms_p99": round(percentile([result.ttft for result in measured], 99), 2),
        "itl_ms_p50": round(percentile(gaps, 50), 3),
        "itl_ms_p99": round(percentile(gaps, 99), 3),
        "tpot_ms_p50": round(percentile([result.tpot for result in measured], 50), 3),
        "client_cpu_percent": round(100 * cpu / wall, 1),
    }


def _served_model(options: argparse.Namespace) -> str:
    request = Request(options.url.rstrip("/") + "/v1/models")
    if options.api_key:
        request.add_header("Authorization", f"Bearer {options.api_key}")
    with urlopen(request, timeout=10) as response:
        return str(json.load(response)["data"][0]["id"])


def _parse() -> argparse.Namespace:
    parser = argument_parser(__doc__, "serving*.{json,md}, without a URL", rounds=3)
    parser.add_argument("url", nargs="?", default="", help="base URL of the server, without /v1; none: start rbee")
    parser.add_argument("--serve", default="", metavar="OPTIONS", help="for that rbee, such as '--runner torch'")
    parser.add_argument("--concurrency", type=integers, default="1,8,32", help="levels (default %(default)s)")
    parser.add_argument("--requests", type=int, default=0, help="requests per level; 0: 3 per client, at least 8")
    parser.add_argument("--words", type=int, default=40, help="words per prompt (default %(default)s)")
    parser.add_argument("--tokens", type=int, default=48, help="tokens out per request (default %(default)s)")
    parser.add_argument("--chat", action="store_true", help="use /v1/chat/completions instead of /v1/completions")
    parser.add_argument("--ignore-eos", action="store_true", help="send ignore_eos, which rbee, vLLM and others know")
    parser.add_argument("--model", default="", help="model name; by default the first of /v1/models")
    parser.add_argument("--api-key", default="", help="sent as a Bearer token")
    parser.add_argument("--timeout", type=float, default=300.0, help="seconds one stream may take (default 300)")
    options = parser.parse_args()
    if options.url and (options.save or options.serve):
        parser.error("--serve and --save are for the server that is started when no URL is given")
    return options


def measure_levels(options: argparse.Namespace) -> dict[str, Any]:
    """Run warm-up, then every level in every round; the median round by tok/s stands for its level."""
    model = options.model or _served_model(options)
    uvloop.run(run_level(options, model, 1, 1, seed=-1))
    rounds: dict[int, list[dict[str, Any]]] = {level: [] for level in options.concurrency}
    for number in range(options.rounds):
        for level in options.concurrency:
            requests = options.requests or max(8, 3 * level)
            result = uvloop.run(run_level(options, model, level, requests, seed=1_000_000 * number + 10_000 * level))
            rounds[level].append(result)
            progress(f"round {number + 1}/{options.rounds}  c={level}: {result['tok_s']} tok/s")
    return {
        "benchmark": "serving",
        "model": model,
        "levels": [
            sorted(results, key=lambda result: result["tok_s"])[(len(results) - 1) // 2] for results in rounds.values()
        ],
        "tok_s_stdev": {
            level: round(statistics.pstdev([result["tok_s"] for result in results]), 1)
            for level, results in rounds.items()
        },
        "failed": sum(result["failed"] for results in rounds.values() for result in results),
    }


def report(levels: list[dict[str, Any]]) -> str:
    """A table."""
    keys = ("tok_s", "ttft_ms_p50", "ttft_ms_p99", "itl_ms_p50", "itl_ms_p99", "tpot_ms_p50")
    rows = [
        [str(level["concurrency"]), *(f"{level[key]:g}" for key in keys), f"{level['client_cpu_percent']:g} %"]
        for level in levels
    ]
    head = ["c", "tok/s", "TTFT p50, ms", "p99", "ITL p50, ms", "p99", "TPOT p50, ms", "client CPU"]
    return table(head, rows)


def main() -> int:
    """Measure the server that is named, or one of our own, and report."""
    options = _parse()
    own = None if options.url else OwnServer(*shlex.split(options.serve))
    try:
        if own:
            options.url = own.url
        result = measure_levels(options)
    finally:
        if own:
            own.stop()
    text = report(result["levels"])
    if own:
        result["serve"] = options.serve
        text = f"`rbee serve {options.serve}".rstrip() + f"`, medians of {options.rounds} rounds.\n\n{text}"
        if (options.words, options.tokens) == (40, 48) and "--model" not in options.serve:
            text += "\n\n" + compared(result["levels"])
    finish(options, "serving" + re.sub(r"\W+", "_", options.serve), "rbee over HTTP", text, result)
    return 1 if result["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
