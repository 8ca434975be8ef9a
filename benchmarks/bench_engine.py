"""Where a step's time goes, and what our part of it is beside the model's forward pass.

    python benchmarks/bench_engine.py --save
    make bench-engine-peers ARGS=--save

Decode steps of the default model at several batch sizes, greedy and sampling, in one process without a server:

* schedule: with taking submissions, cancels and full rings.
* prepare: the step's arrays.
* forward: the model. "index" is the part of it that the torch runner spends on attention's index arrays.
* sample, and publish with the end of sequences.

Own overhead is everything but forward. After a forward pass our own data is out of the processor's caches. "reading the
logits" is a bare maximum over them at that point: the floor of sampling. For the native runner, forward is divided
further and stands beside its floors: the bytes it reads over the measured bandwidth, and its multiplications over the
measured peak.

The peer in the same run is transformers' own forward pass with the same weights in fp32, at the same batch and context,
with its DynamicCache and sdpa attention, as `generate` calls it. Medians over `--rounds`, each of `--steps` steps;
greedy, sampling and transformers take turns.

With --vs: the runner's step and prefill beside those of other engines; see `versus_peers.py`.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import versus_peers
from engine_floors import Machine, Work
from engine_rig import (
    Rig,
    add_gguf_option,
    add_model_options,
    float_folder,
    gguf_file,
    label,
    load_runner,
    model_folder,
    num_threads,
    random_prompts,
    variant,
)
from peer_process import add_peer_option
from program import argument_parser, finish, integers, progress
from saving import table

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable
    from pathlib import Path

    from rbee.engine.runners.interface import ModelRunner
    from rbee.engine.runners.torch.runner import TorchRunner

_PHASES = ("schedule", "prepare", "index", "forward", "sample", "publish")
_SAMPLING = {"greedy": {}, "sampled": {"temperature": 0.8, "top_p": 0.95, "top_k": 50, "seed": 1}}


class _IndexClock:
    """Times the part of a forward pass that builds the attention's index arrays."""

    def __init__(self, runner: ModelRunner) -> None:
        self.ns = 0
        if runner.name != "torch":
            return  # no part of its own
        cache = cast("TorchRunner", runner)._cache  # noqa: SLF001 - a stopwatch inside
        begin_step = cache.begin_step

        def timed(batch: Any) -> None:
            started = time.monotonic_ns()
            begin_step(batch)
            self.ns += time.monotonic_ns() - started

        cache.begin_step = timed  # type: ignore[method-assign] # a stopwatch around it


class Round(NamedTuple):
    """Mean ms of the phases of a step, and of the parts of its forward pass if the runner keeps account of them."""

    phases: dict[str, float]
    parts: dict[str, float]

    @property
    def step(self) -> float:
        """All phases."""
        return sum(self.phases.values())


def _profile(runner: Any) -> dict[str, float]:
    """Seconds that the parts of all forward passes so far have taken, if the runner knows."""
    return dict(runner.profile()) if hasattr(runner, "profile") else {}


def _parts(before: dict[str, float], after: dict[str, float], steps: int, threads: int) -> dict[str, float]:
    """Mean ms of a step's parts. What a thread works on each, and what it waits for the others, add up to the step."""
    if not after:
        return {}
    ms = {name: 1e3 * (after[name] - before[name]) / steps for name in after}
    parts = {name: work / threads for name, work in ms.items() if name != "steps"}
    return parts | {"waiting": ms["steps"] - sum(parts.values())}


def measure_rbee(
    runner: ModelRunner, clock: _IndexClock, batch: int, options: argparse.Namespace, sampling: dict[str, Any]
) -> Round:
    """`--steps` steps in which all sequences decode."""
    with contextlib.ExitStack() as stack:
        rig = Rig(stack, runner, prefix_caching=False, max_num_batched_tokens=batch * options.prompt)
        for prompt in random_prompts(batch, options.prompt, runner.vocab_size, options.seed):
            rig.submit(prompt, time.monotonic_ns(), max_tokens=options.steps + 3, **sampling)
        rig.step()  # all prompts
        rig.step()
        assert len(rig.scheduler.running) == batch
        before, index_before, profile_before = rig.core.times, clock.ns, _profile(runner)
        for _ in range(options.steps):
            rig.step()
        after, index, profile = rig.core.times, (clock.ns - index_before) / 1e6 / options.steps, _profile(runner)
        assert after.steps - before.steps == options.steps
        rig.run()
    phases = {
        name: (getattr(after, name) - getattr(before, name)) / 1e6 / options.steps
        for name in ("schedule", "prepare", "forward", "sample", "publish")
    }
    phases["forward"] -= index
    parts = _parts(profile_before, profile, options.steps, num_threads(options))
    return Round(phases | {"index": index}, parts)


def measure_floor(runner: ModelRunner, batch: int) -> float:
    """Median ms of a maximum along each row of logits that a matrix product has just written, in one thread."""
    import torch  # noqa: PLC0415 - as below

    hidden, head = torch.randn(batch, 576), torch.randn(runner.vocab_size, 576)
    taken = []
    for _ in range(20):
        logits = (hidden @ head.T).numpy()
        started = time.monotonic_ns()
        logits.max(axis=1)
        taken.append((time.monotonic_ns() - started) / 1e6)
    return statistics.median(taken)


def load_transformers(folder: Path, options: argparse.Namespace) -> Callable[[int], float]:
    """A function that gives the mean ms of a decode step of transformers at a batch size, argmax included."""
    import torch  # noqa: PLC0415 - takes seconds: `--help` stays instant
    from transformers import AutoModelForCausalLM, DynamicCache  # noqa: PLC0415

    load: Any = AutoModelForCausalLM.from_pretrained
    model = load(float_folder(folder), dtype=torch.float32, attn_implementation="sdpa")
    model.eval()

    def measure(batch: int) -> float:
        prompts = torch.tensor(random_prompts(batch, options.prompt, model.config.vocab_size, options.seed))
        with torch.inference_mode():
            cache = DynamicCache(config=model.config)
            logits = model(input_ids=prompts, past_key_values=cache, logits_to_keep=1).logits
            token_ids = logits[:, -1].argmax(-1, keepdim=True)
            token_ids = model(input_ids=token_ids, past_key_values=cache).logits[:, -1].argmax(-1, keepdim=True)
            started = time.monotonic_ns()
            for _ in range(options.steps):
                token_ids = model(input_ids=token_ids, past_key_values=cache).logits[:, -1].argmax(-1, keepdim=True)
            ms: float = (time.monotonic_ns() - started) / 1e6 / options.steps
            return ms

    return measure


def _median(rounds: list[Round]) -> Round:
    """The round whose whole step was the median one: its phases belong together."""
    return sorted(rounds, key=lambda measured: measured.step)[(len(rounds) - 1) // 2]


def _floors(levels: list[dict[str, Any]], runner: Any, folder: Path, options: argparse.Namespace) -> list[str]:
    """A sentence per greedy level on what forward consists of and what its floors are; fills both into the level."""
    gguf = gguf_file(folder, options)
    # What is exact is not in int8, and its cache in neither kind of bits.
    work = Work.of(folder, gguf, options.kv_cache_dtype) if gguf and not options.exact else None
    native = getattr(runner, "instruction_set", None)
    machine = Machine.measure(native, num_threads(options), work.weight_bytes) if native and work else None
    context = options.prompt + options.steps // 2
    sentences = []
    for level in levels:
        if level["sampling"] != "greedy":
            continue
        sentence = f"Batch {level['batch']}: forward {level['forward']:.2f} ms"
        if level["parts"]:
            sentence += ", of it a thread's " + ", ".join(f"{name} {ms:.2f}" for name, ms in level["parts"].items())
        if work and machine:
            megabytes = work.bytes_of(level["batch"], context) / 1e6
            macs = work.macs_of(level["batch"], context) / 1e6
            bytes_ms, macs_ms = 1e9 * megabytes / machine.bandwidth, 1e9 * macs / machine.peak_macs
            level |= {"floor_bytes_ms": round(bytes_ms, 3), "floor_macs_ms": round(macs_ms, 3)}
            sentence += (
                f"; {megabytes:.0f} MB at {machine.bandwidth / 1e9:.1f} GB/s take {bytes_ms:.2f} ms and "
                f"{macs:.0f} million MACs at {machine.peak_macs / 1e9:.0f} G/s {macs_ms:.2f} ms: forward is "
                f"{level['forward'] / max(bytes_ms, macs_ms):.2f} times the larger"
            )
        sentences.append(sentence + ".")
    return sentences


def main() -> None:
    """Measure all, in turns, and report."""
    parser = argument_parser(__doc__, "engine*.{json,md}", rounds=5)
    add_model_options(parser)
    add_gguf_option(parser)
    add_peer_option(parser)
    parser.add_argument("--batch", type=integers, help="batch sizes (default 1,8,16,32; with --vs 1,2,4,8,16,32)")
    parser.add_argument("--prompt", type=int, help="tokens of each prompt (default 64; with --vs 256)")
    parser.add_argument(
        "--prefill",
        type=integers,
        default="128,1024",
        help="with --vs: lengths of prompts (default %(default)s)",
    )
    parser.add_argument("--steps", type=int, default=24, help="decode steps per round (default %(default)s)")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    if options.vs:
        options.batch, options.prompt = options.batch or [1, 2, 4, 8, 16, 32], options.prompt or 256
        versus_peers.compare(options)
        return
    options.batch, options.prompt = options.batch or [1, 8, 16, 32], options.prompt or 64
    measure_phases(options)


def measure_phases(options: argparse.Namespace) -> None:
    """The split of a step, beside transformers."""
    folder = model_folder(options.model)
    runner = load_runner(folder, options)
    clock = _IndexClock(runner)
    transformers_step = load_transformers(folder, options)
    floor_ms = measure_floor(runner, max(options.batch))

    ours: dict[tuple[int, str], list[Round]] = {}
    theirs: dict[int, list[float]] = {}
    for number in range(options.rounds):
        for batch in options.batch:
            for name, sampling in _SAMPLING.items():
                ours.setdefault((batch, name), []).append(measure_rbee(runner, clock, batch, options, sampling))
            theirs.setdefault(batch, []).append(transformers_step(batch))
            progress(f"round {number + 1}/{options.rounds}  batch {batch}")

    rows, levels = [], []
    for (batch, name), measured in ours.items():
        median = _median(measured)
        phases, step = median.phases, median.step
        own = step - phases["forward"] - phases["index"]
        peer = statistics.median(theirs[batch])
        level: dict[str, Any] = {name: round(ms, 4) for name, ms in phases.items()} | {
            "batch": batch,
            "sampling": name,
            "parts": {name: round(ms, 4) for name, ms in median.parts.items()},
            "step_ms": round(step, 3),
            "own_ms": round(own, 4),
            "tok_s": round(1e3 * batch / step, 1),
            "transformers_step_ms": round(peer, 3),
            "transformers_over_rbee": round(peer / step, 3),
        }
        levels.append(level)
        rows.append(
            [str(batch), name, *(f"{phases[phase]:.3f}" for phase in _PHASES), f"{own:.3f}", f"{step:.2f}",
             f"{1e3 * batch / step:.1f}", f"{peer:.2f}", f"{peer / step:.2f}"]
        )  # fmt: skip
    head = ["batch", "", *_PHASES, "own", "step", "tok/s", "transformers' step", "over ours"]
    text = (
        f"Milliseconds per decode step, contexts of {options.prompt} tokens and more; runner {label(runner, options)}."
        "\n\n" + table(head, rows)
    )
    if runner.name == "native":
        text += "".join(f"\n\n{sentence}" for sentence in _floors(levels, runner, folder, options))
    largest = max(options.batch)
    for level in levels:
        if level["batch"] == largest:
            met = "met" if level["own_ms"] <= 1 else "MISSED"
            text += (
                f"\n\nOwn overhead at batch {largest}, {level['sampling']}: {level['own_ms']} ms (target 1): {met}; "
                f"with index {level['own_ms'] + level['index']:.2f} ms; reading the logits {floor_ms:.2f} ms."
            )
    result = {
        "benchmark": "engine",
        "runner": label(runner, options),
        "levels": levels,
        "logits_floor_ms": floor_ms,
    }
    finish(options, f"engine{variant(options)}", "A step of the engine", text, result)


if __name__ == "__main__":
    main()
