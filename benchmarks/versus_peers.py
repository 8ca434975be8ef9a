"""The part of `bench_engine.py` that compares the engine with others: llama.cpp, ik_llama.cpp, OpenVINO GenAI.

For every shape, and in every round anew, one contender is measured after the other, never two at once: each peer is a
process that sleeps until it gets the command to measure a round. All get the same prompts, as token ids, the same GGUF
file and as many threads. How each peer is set up: the docstrings of `*_peer.py`.
  decode   a step of B sequences that each have the prompt's tokens before it: one call of the peer for B tokens, up to
           having all logits, beside our `runner.execute`; greedy, so that the next step's tokens are known. In a round
           the median of `--steps` steps.
  prefill  a lone prompt of so many tokens until its last token's logits are there: one call, beside our
           `runner.execute` of all its chunks, as the scheduler cuts them.
Medians of the rounds. Our whole step stands beside: scheduling, sampling and publishing included, which a peer's figure
is without (but OpenVINO's). What the waiting processes and the rest of the machine use of a core meanwhile is measured
too, because their threads must not spin. Distrust a run in which that is more than a few percent.

Ratios are to the quickest peer of each shape. For decode at batch 1 the bytes of the file over the measured read
bandwidth stand beside: no engine that reads all weights for a token is quicker.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from engine_floors import Machine, Work
from engine_rig import Rig, gguf_for_peers, label, load_runner, model_folder, num_threads, random_prompts, variant
from peer_process import PeerProcess
from program import finish, progress
from saving import table

from rbee.config import DEFAULT_MODEL
from rbee.engine.step_clock import PhaseTimes

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from rbee.engine.runners.interface import ModelRunner

_SMALL = 5e8  # weights; a larger model does not fit a cache
_TARGETS = {
    True: {
        ("decode", 1): {"llama-cpp": 2.0},
        ("decode", 8): {"llama-cpp": 3.0},
        ("decode", 16): {"llama-cpp": 3.5},
        ("decode", 32): {"llama-cpp": 3.5},
        ("prefill", 128): {"llama-cpp": 3.5, "ik-llama-cpp": 1.8},
        ("prefill", 1024): {"llama-cpp": 3.5, "ik-llama-cpp": 1.8},
    },
    False: {
        ("decode", 1): {"llama-cpp": 1.5, "ik-llama-cpp": 1.15},
        ("decode", 4): {"": 1.8},
        ("decode", 16): {"": 3.0},
        ("prefill", 512): {"": 1.8},
    },
}
"""How many times the tokens per second of peers whose names begin so are to be reached, by whether a model is small."""
_BANDWIDTH_TARGET = 0.88  # of what a step at batch 1 of a large model must read, over the bandwidth

_ANYBODY = "anybody else"


class Shape(NamedTuple):
    """What is measured: "decode" of so many sequences, or "prefill" of so many tokens."""

    kind: str
    size: int


class Taken(NamedTuple):
    """Milliseconds that a shape takes: the model's part, and with all that the engine does beside it."""

    forward: float
    whole: float


class Contender(Protocol):
    """The engine or a peer."""

    name: str

    def cpu_seconds(self) -> float:
        """What its process has used so far."""
        ...

    def measure(self, shape: Shape, prompt: list[int], steps: int) -> Taken:
        """One round: the median of so many steps, or the prefill of a new prompt."""
        ...


class Ours:
    """The engine, with the prompts of the sequences that will decode in its prefix cache."""

    name = "rbee"

    def __init__(self, stack: contextlib.ExitStack, runner: ModelRunner, prompts: list[list[int]]) -> None:
        # What the prefix cache leaves of a prompt, a block at most, must fit one step for all of them.
        self._rig = Rig(stack, runner, max_num_batched_tokens=max(512, 16 * len(prompts)))
        self._prompts = prompts
        for prompt in prompts:
            self._rig.submit(prompt, time.monotonic_ns(), max_tokens=1)
            self._rig.run()

    def cpu_seconds(self) -> float:
        """Of this process."""
        return time.process_time()

    def measure(self, shape: Shape, prompt: list[int], steps: int) -> Taken:
        """See `Contender`."""
        return self._decode(shape.size, steps) if shape.kind == "decode" else self._prefill(prompt)

    def _decode(self, batch: int, steps: int) -> Taken:
        streams = [
            self._rig.submit(prompt, time.monotonic_ns(), max_tokens=steps + 3) for prompt in self._prompts[:batch]
        ]
        self._rig.step()
        assert all(len(stream.token_ids) == 1 for stream in streams), "not all prompts ended in one step"
        self._step()  # for warmth
        taken = [self._step() for _ in range(steps)]
        assert all(len(stream.token_ids) == steps + 2 for stream in streams), "a sequence missed a step"
        self._rig.run()
        return Taken(*(statistics.median(column) for column in zip(*taken, strict=True)))

    def _prefill(self, prompt: list[int]) -> Taken:
        stream = self._rig.submit(prompt, time.monotonic_ns(), max_tokens=1)
        taken = []
        while not stream.token_ids:
            taken.append(self._step())
        self._rig.run()
        return Taken(*(sum(column) for column in zip(*taken, strict=True)))

    def _step(self) -> Taken:
        before = self._rig.core.times
        self._rig.step()
        steps, *phases = (now - then for now, then in zip(self._rig.core.times, before, strict=True))
        assert steps == 1
        return Taken(phases[PhaseTimes._fields.index("forward") - 1] / 1e6, sum(phases) / 1e6)


class Theirs:
    """A peer that holds the same prompts."""

    def __init__(self, process: PeerProcess, prompts: list[list[int]], steps: int) -> None:
        self.name = process.name
        self.facts = process.facts
        self.cpu_seconds = process.cpu_seconds
        self._process = process
        process.ask("hold", prompts=prompts, num_tokens=max(map(len, prompts)) + steps + 2)

    def measure(self, shape: Shape, prompt: list[int], steps: int) -> Taken:
        """See `Contender`."""
        if shape.kind == "decode":
            ms = statistics.median(self._process.ask("decode", batch=shape.size, steps=steps)["ms"])
        else:
            ms = self._process.ask("prefill", prompt=prompt)["ms"]
        return Taken(ms, ms)


class Watch:
    """Measures contenders one at a time, and what share of a core each used while it was not measured.

    "anybody else" is all that is no contender, the hypervisor's other guests included.
    """

    def __init__(
        self,
        contenders: list[Contender],
        *,
        now: Callable[[], float] = time.monotonic,
        busy: Callable[[], float] | None = None,
    ) -> None:
        """Watch `contenders` by these clocks: the time, and what all cores together have been busy."""
        self._now = now
        self._busy = busy or _busy_seconds
        self._contenders = contenders
        names = [*(contender.name for contender in contenders), _ANYBODY]
        self._used = dict.fromkeys(names, 0.0)
        self._seconds = dict.fromkeys(names, 0.0)

    def measure(self, contender: Contender, shape: Shape, prompt: list[int], steps: int) -> Taken:
        """What `contender` takes."""
        before, busy, started = self._clocks(), self._busy(), self._now()
        taken = contender.measure(shape, prompt, steps)
        seconds, busy = self._now() - started, self._busy() - busy
        used = {name: clock - before[name] for name, clock in self._clocks().items()}
        used[_ANYBODY] = max(0.0, busy - sum(used.values()))
        del used[contender.name]
        for name, its_seconds in used.items():
            self._used[name] += its_seconds
            self._seconds[name] += seconds
        return taken

    def _clocks(self) -> dict[str, float]:
        return {contender.name: contender.cpu_seconds() for contender in self._contenders}

    def idle_shares(self) -> dict[str, float]:
        """By contender."""
        return {name: round(used / max(self._seconds[name], 1e-9), 4) for name, used in self._used.items()}


def _busy_seconds() -> float:
    """What all cores together have not been idle since the machine started, in ticks of 10 ms as a rule."""
    user, nice, system, _idle, _iowait, irq, softirq, steal, *_guests = map(
        int, Path("/proc/stat").read_text().splitlines()[0].split()[1:]
    )
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def compare(options: argparse.Namespace) -> None:
    """Measure all in turns, and report."""
    folder = model_folder(options.model)
    gguf = gguf_for_peers(folder, options)
    model = Path(options.model).name
    shapes = [Shape("decode", size) for size in options.batch]
    shapes += [Shape("prefill", size) for size in options.prefill]
    with contextlib.ExitStack() as stack:
        runner = load_runner(folder, options)
        prompts = random_prompts(max(options.batch), options.prompt, runner.vocab_size, options.seed)
        progress("computing the prompts")
        ours = Ours(stack, runner, prompts)
        peers = []
        for python in options.vs:
            process = PeerProcess(python, gguf, threads=num_threads(options))
            stack.callback(process.close)
            peers.append(Theirs(process, prompts, options.steps))
        rounds, idle = _measure([ours, *peers], shapes, options, runner.vocab_size)

    work = Work.of(folder, gguf, options.kv_cache_dtype)
    small = work.weights < _SMALL
    text, levels = report(rounds, [peer.name for peer in peers], _TARGETS[small])
    text = (
        f"Tokens per second of {model}; contexts of {options.prompt} tokens and more; our runner: "
        f"{label(runner, options)}. Medians of {options.rounds} rounds.\n\n{text}\n\nUsed of a core while another one "
        "was measured: " + ", ".join(f"{name} {100 * share:.1f} %" for name, share in idle.items()) + "."
    )
    result = {
        "benchmark": "engine_vs_peers",
        "model": model,
        "runner": label(runner, options),
        "context": options.prompt,
        "steps": options.steps,
        "threads": num_threads(options),
        "peers": {peer.name: peer.facts for peer in peers},
        "levels": levels,
        "idle_cpu_share": idle,
    }
    native = getattr(runner, "instruction_set", None)
    alone = next((level for level in levels if (level["shape"], level["size"]) == ("decode", 1)), None)
    if native and alone:
        machine = Machine.measure(native, num_threads(options), work.weight_bytes)
        floors = bandwidth_shares(alone["tok_s"], work.bytes_of(1, options.prompt + options.steps // 2), machine)
        target = None if small else _BANDWIDTH_TARGET
        text += f"\n\n{floors_text(floors, machine, target)}"
        result |= {"bandwidth": round(machine.bandwidth), "bandwidth_share": floors}
    name = "" if options.model == DEFAULT_MODEL else f"_{Path(model).stem}"
    finish(options, f"engine_vs_peers{name}{variant(options)}", "The engine beside others", text, result)


def bandwidth_shares(tok_s: dict[str, float], num_bytes: int, machine: Machine) -> dict[str, float]:
    """By contender, the time that a step's bytes take at the measured bandwidth over the time that it takes."""
    return {name: round(rate * num_bytes / machine.bandwidth, 3) for name, rate in tok_s.items()}


def floors_text(shares: dict[str, float], machine: Machine, target: float | None) -> str:
    """A sentence with all shares, ours first, held against the target if there is one."""
    ours = shares["rbee"]
    verdict = "" if target is None else f" (target {target}: {'met' if ours >= target else 'MISSED'})"
    others = ", ".join(f"{name} {share:.2f}" for name, share in shares.items() if name != "rbee")
    return (
        f"Decode at batch 1, the file's bytes and the context's over the bandwidth of {machine.bandwidth / 1e9:.1f} "
        f"GB/s, as a share of the time that a step takes: rbee {ours:.2f}{verdict}; {others}."
    )


def _measure(
    contenders: list[Contender], shapes: list[Shape], options: argparse.Namespace, vocab_size: int
) -> tuple[dict[Shape, dict[str, list[Taken]]], dict[str, float]]:
    """By shape and name, what each round took; and what those that waited used of a core."""
    watch = Watch(contenders)
    rounds: dict[Shape, dict[str, list[Taken]]] = {
        shape: {contender.name: [] for contender in contenders} for shape in shapes
    }
    for number in range(options.rounds):
        first = number % len(contenders)  # the first one finds the machine in another state: all take their turn
        for shape in shapes:
            prompt = random_prompts(1, shape.size, vocab_size, options.seed + 1000 + number)[0]
            for contender in [*contenders[first:], *contenders[:first]]:
                rounds[shape][contender.name].append(watch.measure(contender, shape, prompt, options.steps))
        progress(f"round {number + 1}/{options.rounds}")
    return rounds, watch.idle_shares()


def report(
    rounds: dict[Shape, dict[str, list[Taken]]], peers: list[str], targets: dict[tuple[str, int], dict[str, float]]
) -> tuple[str, list[dict[str, Any]]]:
    """A table, and the same for programs."""
    rows, levels = [], []
    for shape, taken in rounds.items():
        rates = {
            name: 1e3 * shape.size / statistics.median(each.forward for each in turns) for name, turns in taken.items()
        }
        whole = 1e3 * shape.size / statistics.median(each.whole for each in taken["rbee"])
        ratios = {peer: rates["rbee"] / rates[peer] for peer in peers}
        to_reach = {peer: _target(targets.get(shape, {}), peer) for peer in peers}
        met = {peer: ratios[peer] >= target for peer, target in to_reach.items() if target is not None}
        levels.append(
            {
                "shape": shape.kind,
                "size": shape.size,
                "tok_s": {name: round(rate, 1) for name, rate in rates.items()},
                "whole_step_tok_s": round(whole, 1),
                "ratio": {peer: round(ratio, 3) for peer, ratio in ratios.items()},
                "target": to_reach,
                "met": met,
                "rounds_ms": {name: [round(each.forward, 3) for each in turns] for name, turns in taken.items()},
                "rounds_whole_ms": [round(each.whole, 3) for each in taken["rbee"]],
            }
        )
        rows.append(
            [f"{shape.kind} {shape.size}", f"{rates['rbee']:.1f}", f"{whole:.1f}",
             *(f"{rates[peer]:.1f}" for peer in peers),
             *(_cell(ratios[peer], to_reach[peer]) for peer in peers)]
        )  # fmt: skip
    head = ["tok/s", "rbee", "rbee, whole step", *peers, *(f"rbee over {peer}" for peer in peers)]
    return table(head, rows), levels


def _target(by_peer: dict[str, float], peer: str) -> float | None:
    """What is to be reached beside this peer; the longest beginning of its name counts."""
    beginnings = [beginning for beginning in by_peer if peer.startswith(beginning)]
    return by_peer[max(beginnings, key=len)] if beginnings else None


def _cell(ratio: float, target: float | None) -> str:
    if target is None:
        return f"{ratio:.2f}"
    return f"{ratio:.2f} ({'met' if ratio >= target else 'MISSED'}: {target:g})"
