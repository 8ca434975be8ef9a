"""What the prefix cache saves when many requests share a system prompt.

    python benchmarks/bench_prefix_cache.py --save

`--requests` requests of the default model, each with `--shared` common tokens and `--own` of its own, in one process
without a server. TTFT from submission to the commit of the first token, with the cache and without it, in turns:

  one by one   each request is sent when the one before has its first token
  at once      all are sent at the same moment, to an engine whose cache is empty
"""

from __future__ import annotations

import contextlib
import statistics
import time
from typing import TYPE_CHECKING, Any

from engine_rig import Rig, add_model_options, load_runner, model_folder, random_prompts
from program import argument_parser, finish, progress
from saving import table

if TYPE_CHECKING:
    import argparse

    from rbee.engine.runners.interface import ModelRunner


def measure(runner: ModelRunner, options: argparse.Namespace, seed: int, *, cached: bool) -> dict[str, list[float]]:
    """TTFT in ms of each request, in the order of their submission, by workload, and the first tokens."""
    (shared,) = random_prompts(1, options.shared, runner.vocab_size, seed)
    prompts = [shared + own for own in random_prompts(options.requests, options.own, runner.vocab_size, seed + 1)]
    figures = {}
    for workload in ("one by one", "at once"):
        with contextlib.ExitStack() as stack:
            rig = Rig(stack, runner, prefix_caching=cached)
            streams = []
            for prompt in prompts:
                streams.append(rig.submit(prompt, time.monotonic_ns(), max_tokens=1))
                if workload == "one by one":
                    rig.run()
            rig.run()
            figures[workload] = [stream.ttft_ms for stream in streams]
            figures[workload + ", tokens"] = [stream.token_ids[0] for stream in streams]
    return figures


def main() -> None:
    """Measure with and without the cache, in turns, and report."""
    parser = argument_parser(__doc__, "prefix_cache.{json,md}", rounds=3)
    add_model_options(parser)
    parser.add_argument("--requests", type=int, default=16)
    parser.add_argument("--shared", type=int, default=1000, help="tokens that all have in common (default %(default)s)")
    parser.add_argument("--own", type=int, default=20, help="tokens of each request's own (default %(default)s)")
    options = parser.parse_args()
    runner = load_runner(model_folder(options.model), options)

    rounds: dict[bool, list[dict[str, list[float]]]] = {True: [], False: []}
    for number in range(options.rounds):
        for cached, results in rounds.items():
            results.append(measure(runner, options, seed=10 * number, cached=cached))
            progress(f"round {number + 1}/{options.rounds}  {'with' if cached else 'without'} cache")

    # In fp32 another division of a prompt into steps may round to another token where two are almost equally likely.
    differing = sum(
        a != b
        for with_cache, without in zip(rounds[True], rounds[False], strict=True)
        for a, b in zip(with_cache["one by one, tokens"], without["one by one, tokens"], strict=True)
    )
    rows, figures = [], {}
    for workload in ("one by one", "at once"):
        for cached, results in rounds.items():
            first = statistics.median(one[workload][0] for one in results)
            later = statistics.median(ttft for one in results for ttft in one[workload][1:])
            last = statistics.median(max(one[workload]) for one in results)
            key = f"{workload}, {'cached' if cached else 'uncached'}"
            figures[key] = {
                "ttft_first_ms": round(first, 2), "ttft_later_p50_ms": round(later, 2), "ttft_last_ms": round(last, 2)
            }  # fmt: skip
            rows.append([key, f"{first:.1f}", f"{later:.1f}", f"{last:.1f}"])
    cached_ttft = figures["one by one, cached"]["ttft_later_p50_ms"]
    share = cached_ttft / figures["one by one, uncached"]["ttft_later_p50_ms"]
    text = (
        f"{options.requests} requests, {options.shared} tokens in common and {options.own} of their own; TTFT in ms."
        "\n\n" + table(["", "first", "later, median", "slowest"], rows)
        + f"\n\nTTFT after the first over the uncached: {share:.3f} "
        + f"(target 0.2): {'met' if share <= 0.2 else 'MISSED'}. "
        + f"First tokens that differ from those without the cache: {differing} of {options.rounds * options.requests}."
    )  # fmt: skip
    result: dict[str, Any] = {
        "benchmark": "prefix_cache",
        "figures": figures,
        "share": share,
        "differing": differing,
    }
    finish(options, "prefix_cache", "Requests that share a prefix", text, result)


if __name__ == "__main__":
    main()
