"""Where a step's time goes, and what our part of it is beside the model's forward pass.

    python benchmarks/bench_engine.py --save

Decode steps of the default model (torch, fp32) at several batch sizes, greedy and sampling, in one process without a
server: schedule (with taking submissions, cancels and full rings), prepare (the step's arrays), forward, sample,
publish (with the end of sequences); own overhead is everything but forward. What the runner does in forward before the
model runs, the attention's index arrays, stands beside as "index". After a forward pass all of our own data is out of
the processor's caches; "reading the logits" is what a bare maximum over them takes there, the floor of sampling.
Medians over `--rounds`, each of `--steps` steps, greedy, sampling and transformers taking turns.

Beside it in the same run: transformers' own forward pass on the same model object's weights, at the same batch and
context, with its DynamicCache and sdpa attention, as `generate` would call it. A table on stderr, one JSON line on
stdout; --save writes both to results/.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import statistics
import sys
import time
from typing import TYPE_CHECKING, Any

from engine_rig import Rig, add_model_options, load_runner, model_folder
from machine import describe
from saving import save, table

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from rbee.engine.torch_runner import TorchRunner

_PHASES = ("schedule", "prepare", "index", "forward", "sample", "publish")
_SAMPLING = {"greedy": {}, "sampled": {"temperature": 0.8, "top_p": 0.95, "top_k": 50, "seed": 1}}


def prompts_of(batch: int, tokens: int, vocab_size: int, seed: int) -> list[list[int]]:
    """Random prompts."""
    pick = random.Random(seed)
    return [[pick.randrange(vocab_size) for _ in range(tokens)] for _ in range(batch)]


class _IndexClock:
    """Times the part of a forward pass that builds the attention's index arrays."""

    def __init__(self, runner: TorchRunner) -> None:
        self.ns = 0
        cache = runner._cache  # noqa: SLF001 - a stopwatch inside
        begin_step = cache.begin_step

        def timed(batch: Any) -> None:
            started = time.monotonic_ns()
            begin_step(batch)
            self.ns += time.monotonic_ns() - started

        cache.begin_step = timed  # type: ignore[method-assign] # a stopwatch around it


def measure_rbee(
    runner: TorchRunner, clock: _IndexClock, batch: int, options: argparse.Namespace, sampling: dict[str, Any]
) -> dict[str, float]:
    """Mean ms of each phase over `--steps` steps in which all sequences decode."""
    with contextlib.ExitStack() as stack:
        rig = Rig(stack, runner, prefix_caching=False, max_num_batched_tokens=batch * options.prompt)
        for prompt in prompts_of(batch, options.prompt, runner.vocab_size, options.seed):
            rig.submit(prompt, time.monotonic_ns(), max_tokens=options.steps + 3, **sampling)
        rig.step()  # all prompts
        rig.step()
        assert len(rig.scheduler.running) == batch
        before, index_before = rig.core.times, clock.ns
        for _ in range(options.steps):
            rig.step()
        after, index = rig.core.times, (clock.ns - index_before) / 1e6 / options.steps
        assert after.steps - before.steps == options.steps
        rig.run()
    phases = {
        name: (getattr(after, name) - getattr(before, name)) / 1e6 / options.steps
        for name in ("schedule", "prepare", "forward", "sample", "publish")
    }
    phases["forward"] -= index
    return phases | {"index": index}


def measure_floor(runner: TorchRunner, batch: int) -> float:
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

    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa")
    model.eval()

    def measure(batch: int) -> float:
        prompts = torch.tensor(prompts_of(batch, options.prompt, model.config.vocab_size, options.seed))
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


def _median(rows: list[dict[str, float]]) -> dict[str, float]:
    """The round whose whole step was the median one: its phases belong together."""
    ordered = sorted(rows, key=lambda row: sum(row.values()))
    return ordered[(len(ordered) - 1) // 2]


def main() -> int:
    """Measure all, in turns, and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model_options(parser)
    parser.add_argument("--batch", default="1,8,32", help="comma-separated batch sizes (default %(default)s)")
    parser.add_argument("--prompt", type=int, default=64, help="tokens of each prompt (default %(default)s)")
    parser.add_argument("--steps", type=int, default=24, help="decode steps per round (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds (default %(default)s)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--save", action="store_true", help="write results/engine.md and .json")
    options = parser.parse_args()
    batches = [int(batch) for batch in options.batch.split(",")]
    folder = model_folder(options.model)
    runner: Any = load_runner(folder, threads=options.threads)
    clock = _IndexClock(runner)
    transformers_step = load_transformers(folder, options)
    floor_ms = measure_floor(runner, max(batches))

    ours: dict[tuple[int, str], list[dict[str, float]]] = {}
    theirs: dict[int, list[float]] = {}
    for number in range(options.rounds):
        for batch in batches:
            for name, sampling in _SAMPLING.items():
                ours.setdefault((batch, name), []).append(measure_rbee(runner, clock, batch, options, sampling))
            theirs.setdefault(batch, []).append(transformers_step(batch))
            print(f"round {number + 1}/{options.rounds}  batch {batch}", file=sys.stderr)

    rows, levels = [], []
    for (batch, name), measured in ours.items():
        phases = _median(measured)
        step = sum(phases.values())
        own = step - phases["forward"] - phases["index"]
        peer = statistics.median(theirs[batch])
        level: dict[str, Any] = {name: round(ms, 4) for name, ms in phases.items()} | {
            "batch": batch,
            "sampling": name,
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
    text = f"Milliseconds per decode step, contexts of {options.prompt} tokens and more.\n\n" + table(head, rows)
    largest = max(batches)
    for level in levels:
        if level["batch"] == largest:
            met = "met" if level["own_ms"] <= 1 else "MISSED"
            text += (
                f"\n\nOwn overhead at batch {largest}, {level['sampling']}: {level['own_ms']} ms (target 1): {met}; "
                f"with index {level['own_ms'] + level['index']:.2f} ms; reading the logits {floor_ms:.2f} ms."
            )
    print(text, file=sys.stderr)
    result = {"benchmark": "engine", "levels": levels, "logits_floor_ms": floor_ms, "machine": describe()}
    if options.save:
        save("engine", "A step of the engine", text, result)
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
