"""What running streams notice of a long prompt that arrives beside them.

    python benchmarks/bench_fair_share.py --save

Streams of the default model decode; then a prompt of `--prompt` tokens comes. ITL is the gap between the commits of
successive tokens of one stream, in one process without a server: before the prompt comes, and from then to its first
token. Three engines take turns: the default (chunks sized by their cost, see rbee/engine/scheduling/step_cost.py),
chunks of a fixed 512 tokens, and the whole prompt in one step, as an engine without chunked prefill. The time to the
prompt's first token is measured there and alone.
"""

from __future__ import annotations

import contextlib
import itertools
import statistics
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from bench_serving import percentile
from engine_rig import Rig, Stream, add_model_options, load_runner, model_folder, random_prompts
from program import argument_parser, finish, progress
from saving import table

from rbee.messages import FinishReason

if TYPE_CHECKING:
    import argparse

    from rbee.engine.runners.interface import ModelRunner

_UNBOUNDED = 1e9
_WARM_STEPS = 12  # after which the batch size is settled and its cost known


class Engine(NamedTuple):
    """How an engine divides its steps."""

    max_num_batched_tokens: int
    max_decode_slowdown: float


def gaps_ms(streams: list[Stream], start_ns: int, end_ns: int) -> list[float]:
    """The gaps that ended in this time."""
    return [
        (late - early) / 1e6
        for stream in streams
        for early, late in itertools.pairwise(stream.commit_ns)
        if start_ns < late <= end_ns
    ]


def measure(runner: ModelRunner, engine: Engine, options: argparse.Namespace, seed: int) -> dict[str, float]:
    """One arrival of the long prompt beside the streams."""
    long_prompt, *short = random_prompts(1 + options.streams, options.prompt, runner.vocab_size, seed)
    with contextlib.ExitStack() as stack:
        rig = Rig(
            stack,
            runner,
            prefix_caching=False,
            max_num_batched_tokens=engine.max_num_batched_tokens,
            max_decode_slowdown=engine.max_decode_slowdown,
        )
        streams = [rig.submit(prompt[:40], time.monotonic_ns(), max_tokens=2000) for prompt in short]
        while min(len(stream.commit_ns) for stream in streams) < _WARM_STEPS:
            rig.step()
        quiet_from = time.monotonic_ns()
        for _ in range(options.quiet_steps):
            rig.step()
        arrived = time.monotonic_ns()
        late = rig.submit(long_prompt, arrived, max_tokens=2)
        while not late.commit_ns:
            rig.step()
        first_token = late.commit_ns[0]
        rig.core.end_all(FinishReason.ABORT)
    quiet, beside = gaps_ms(streams, quiet_from, arrived), gaps_ms(streams, arrived, first_token)
    return {
        "itl_p50_without_ms": percentile(quiet, 50),
        "itl_p99_without_ms": percentile(quiet, 99),
        "itl_p50_beside_ms": percentile(beside, 50),
        "itl_p99_beside_ms": percentile(beside, 99),
        "itl_max_beside_ms": max(beside),
        "ttft_of_the_prompt_s": late.ttft_ms / 1e3,
    }


def measure_alone(runner: ModelRunner, options: argparse.Namespace) -> float:
    """Seconds to the first token of the long prompt with nothing beside it."""
    with contextlib.ExitStack() as stack:
        rig = Rig(stack, runner, prefix_caching=False)
        (prompt,) = random_prompts(1, options.prompt, runner.vocab_size, seed=0)
        stream = rig.submit(prompt, time.monotonic_ns(), max_tokens=1)
        rig.run()
        return stream.ttft_ms / 1e3


def main() -> None:
    """Measure the engines in turns, and report."""
    parser = argument_parser(__doc__, "fair_share.{json,md}", rounds=3)
    add_model_options(parser)
    parser.add_argument("--streams", type=int, default=8, help="running streams (default %(default)s)")
    parser.add_argument("--prompt", type=int, default=4000, help="tokens of the prompt (default %(default)s)")
    parser.add_argument("--quiet-steps", type=int, default=40, help="steps before it comes (default %(default)s)")
    options = parser.parse_args()
    runner = load_runner(model_folder(options.model), options)
    engines = {
        "rbee": Engine(512, 2.0),
        "fixed chunks of 512": Engine(512, _UNBOUNDED),
        "no chunking": Engine(options.prompt + options.streams, _UNBOUNDED),
    }
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in engines}
    alone = []
    for number in range(options.rounds):
        for name, engine in engines.items():
            rounds[name].append(measure(runner, engine, options, seed=number))
            progress(f"round {number + 1}/{options.rounds}  {name}")
        alone.append(measure_alone(runner, options))

    figures: dict[str, dict[str, float]] = {}
    for name, results in rounds.items():
        figures[name] = {key: round(statistics.median(one[key] for one in results), 3) for key in results[0]}
        p50, p99 = figures[name]["itl_p50_without_ms"], figures[name]["itl_p99_beside_ms"]
        figures[name]["p99_beside_over_p50_without"] = round(p99 / p50, 2)
    alone_s = round(statistics.median(alone), 3)
    ratio = figures["rbee"]["p99_beside_over_p50_without"]
    rows = [[name, *(f"{value:g}" for value in one.values())] for name, one in figures.items()]
    text = (
        f"{options.streams} streams, a prompt of {options.prompt} tokens; medians of {options.rounds} rounds.\n\n"
        + table(["", *(key.replace("_", " ") for key in figures["rbee"])], rows)
        + f"\n\nThe prompt alone, with chunks of 512: first token after {alone_s} s.\n\n"
        + f"p99 of the ITL beside the prompt over the p50 without it: {ratio} "
        + f"(target 3): {'met' if ratio <= 3 else 'MISSED'}."
    )
    result: dict[str, Any] = {
        "benchmark": "fair_share",
        "streams": options.streams,
        "prompt": options.prompt,
        "engines": figures,
        "prompt_alone_s": alone_s,
    }
    finish(options, "fair_share", "Streams beside a long prompt", text, result)


if __name__ == "__main__":
    main()
