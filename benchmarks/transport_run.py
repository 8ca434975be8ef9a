"""One run of one contender of `bench_transport.py`: two processes, a cadence, and what was measured.

Owns the processes, the measuring loop, the clocks, and the check that nothing was lost. Does not know how a contender
works (`transport_peers.py`) nor what the figures are for.

The producer sleeps until each step is due (absolute, open loop: a late step does not delay the next) and stamps it
right before it publishes. The consumer sleeps in a uvloop event loop. A batch is what one callback of the contender
brings; when its last token is in its stream's list, all of its tokens count as held: one clock reading per batch, so
that every token is charged with its whole batch and the measuring costs little. `delivery` is stamp -> held, `intended`
is due -> held.

CPU time is each process's own clock, all of its threads, from the end of the warm-up until the consumer holds
everything. It contains the harness: for the producer a sleep and a stamp per step, for the consumer a stamp per batch.
The floor contains just that.

By default each process has a core of its own, with all of its threads. Left alone, the scheduler puts the woken
consumer on the producer's core in some runs and on a sleeping core in others, and the floor's own p50 is then anything
from 6 to 70 us (seen on a virtual machine with two cores): rows would not be comparable.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import uvloop
from hdrh.histogram import HdrHistogram
from transport_usage import Meter, Tracer, Usage

from rbee.child import die_with_parent

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from multiprocessing.connection import Connection
    from multiprocessing.process import BaseProcess

    from numpy.typing import NDArray
    from transport_peers import Contender

PERCENTILES = {"p50": 50.0, "p99": 99.0, "p99.9": 99.9, "max": 100.0}

_VOCABULARY = 131_072
_SAMPLED_STEPS = 256  # steps before the sampled tokens repeat
_PATIENCE = 60.0  # seconds beyond what a run is planned to take
_ENDS = {signal.SIGINT, signal.SIGTERM}


@dataclass(frozen=True)
class Plan:
    """What a run does: `steps` steps at a cadence of `step_ns`, or, if that is 0, as many as fit into `seconds`."""

    streams: int
    warmup: int
    steps: int = 0
    step_ns: int = 0
    seconds: float = 0.0
    cpus: tuple[int, int] | None = None
    """Where producer and consumer run, with all of their threads; None: wherever the scheduler puts them."""


class Inbox:
    """What the consumer process holds: all tokens of every stream, and when each batch was complete.

    Attributes:
        tokens: per stream, in the order of arrival.
        batches: per batch: when it was held, how many tokens, and their commit time, one for all or one each.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, plan: Plan, meter: Meter) -> None:
        self.tokens: list[list[int]] = [[] for _ in range(plan.streams)]
        self.batches: list[tuple[int, int, int | list[int]]] = []
        self.marks: list[tuple[int, Usage]] = []  # tokens held and usage, at the end of the warm-up and of the run
        self.error: BaseException | None = None
        self._loop = loop
        self._meter = meter
        self._held = 0
        self._total: float = (plan.warmup + plan.steps) * plan.streams if plan.step_ns else float("inf")
        self._next_mark: float = plan.warmup * plan.streams

    def landed(self, count: int, committed_ns: int | list[int]) -> None:
        """A batch of `count` tokens has just been put into `tokens`."""
        self.batches.append((time.monotonic_ns(), count, committed_ns))
        self._held += count
        if self._held >= self._next_mark:
            self._pass_mark()

    def expect(self, total: int) -> None:
        """The producer has published `total` tokens, the warm-up's included, and nothing will follow."""
        self._total = total
        if len(self.marks) == 1:
            self._next_mark = total
            if self._held >= total:
                self._pass_mark()

    def fail(self, error: BaseException) -> None:
        """End the run."""
        self.error = error
        self._loop.stop()

    def _pass_mark(self) -> None:
        if len(self.marks) < 2:
            self.marks.append((self._held, self._meter.read()))
        self._next_mark = self._total
        if self._held >= self._total:
            self._loop.stop()


def measure(kind: type[Contender], plan: Plan) -> dict[str, Any]:
    """Run a contender at a cadence; its latencies and what both processes used.

    Raises:
        SystemExit: a process failed, or a stream has not got exactly its tokens, in order.
    """
    produced, consumed, _ = _run(kind, plan, trace=False)
    step_of = {commit: step for step, (_, commit) in enumerate(produced["published"])}
    delivery, intended, lateness = [], [], []
    for held_ns, count, committed in _by_commit(consumed["batches"]):
        if committed not in step_of:
            raise SystemExit(f"{kind.name} handed over a commit time that no step had: {committed}.")
        step = step_of[committed]
        stamped_ns = produced["published"][step][0]
        if kind.carries_tokens and not stamped_ns <= committed <= held_ns:
            raise SystemExit(f"{kind.name} handed over a commit time outside of the step's transport: {committed}.")
        if step >= plan.warmup:
            due_ns = produced["start_ns"] + (step + 1) * plan.step_ns
            delivery.append((held_ns - stamped_ns, count))
            intended.append((held_ns - due_ns, count))
            lateness.append((stamped_ns - due_ns, count))
    return {
        "delivery_us": summary_us(delivery),
        "intended_us": summary_us(intended),
        "lateness_us": summary_us(lateness),
        **_costs(plan, produced, consumed),
    }


def saturate(kind: type[Contender], plan: Plan) -> dict[str, Any]:
    """Run a contender as fast as it lets the producer publish; throughput and cost. SystemExit as in `measure`."""
    produced, consumed, _ = _run(kind, plan, trace=False)
    costs = _costs(plan, produced, consumed)
    (_, begin), (_, end) = consumed["marks"]
    seconds = (end.at_ns - begin.at_ns) / 1e9
    return {"tokens_per_s": round(costs["tokens_measured"] / seconds), **costs}


def count_syscalls(kind: type[Contender], plan: Plan) -> dict[str, Any] | None:
    """Run a contender under strace; system calls per step by name, in both processes. None if it may not trace."""
    _, _, traces = _run(kind, plan, trace=True)
    if traces is None:
        return None
    figures: dict[str, Any] = {}
    for role, calls in traces.items():
        figures[role] = round(calls.total() / plan.steps, 1)
        figures[f"{role}_by_name"] = {name: round(count / plan.steps, 1) for name, count in calls.most_common()}
    return figures


def summary_us(samples: Iterable[tuple[int, int]]) -> dict[str, float]:
    """p50, p99, p99.9 and max of (nanoseconds, how often), in microseconds."""
    histogram = HdrHistogram(1, 600_000_000_000, 3)
    for value, count in samples:
        histogram.record_value(max(1, value), count)
    return {name: round(histogram.get_value_at_percentile(percent) / 1e3, 1) for name, percent in PERCENTILES.items()}


def sampled_tokens(streams: int) -> NDArray[np.uint32]:
    """[256, streams] the tokens of the steps, the same in all processes; step k is row k modulo 256."""
    return np.random.default_rng(streams).integers(0, _VOCABULARY, (_SAMPLED_STEPS, streams), np.uint32)


def _costs(plan: Plan, produced: dict[str, Any], consumed: dict[str, Any]) -> dict[str, Any]:
    """CPU, context switches and reads/writes of both processes between their marks."""
    if len(consumed["marks"]) != 2:
        raise SystemExit("Warm-up and measured steps arrived in one batch; measure more steps.")
    (first, consumer_begin), (last, consumer_end) = consumed["marks"]
    steps = len(produced["published"]) - plan.warmup
    figures: dict[str, Any] = {"tokens": last, "tokens_measured": last - first, "steps_measured": steps}
    cpu = 0.0
    for role, begin, end, tokens in (
        ("producer", produced["begin"], produced["end"], steps * plan.streams),
        ("consumer", consumer_begin, consumer_end, last - first),
    ):
        per_token = (end.cpu_ns - begin.cpu_ns) / tokens / 1e3
        cpu += per_token
        role_steps = tokens / plan.streams
        figures[f"{role}_cpu_us_per_token"] = round(per_token, 4)
        figures[f"{role}_switches_per_step"] = round((end.switches - begin.switches) / role_steps, 2)
        figures[f"{role}_reads_writes_per_step"] = (
            None if end.reads_writes is None else round((end.reads_writes - begin.reads_writes) / role_steps, 2)
        )
    figures["cpu_us_per_token"] = round(cpu, 4)
    return figures


def _by_commit(batches: list[tuple[int, int, int | list[int]]]) -> Iterator[tuple[int, int, int]]:
    """(held, count, commit time) for every commit time in every batch."""
    for held_ns, count, committed in batches:
        if isinstance(committed, int):
            yield held_ns, count, committed
        else:
            for value, number in Counter(committed).items():
                yield held_ns, number, value


# ---- the two processes -----------------------------------------------------------------------------------------


def _produce(contender: Contender, plan: Plan, control: Connection) -> None:
    contender.open_producer()
    table = sampled_tokens(plan.streams)
    rows = [table[row] for row in range(len(table))]
    published = []
    begin: Usage | None = None
    meter = Meter()
    control.send(control.fileno())
    control.recv()
    start_ns = time.monotonic_ns()
    step = 0
    while True:
        if step == plan.warmup:
            begin = meter.read()
        if plan.step_ns:
            if step == plan.warmup + plan.steps:
                break
            ahead_ns = start_ns + (step + 1) * plan.step_ns - time.monotonic_ns()
            if ahead_ns > 0:
                time.sleep(ahead_ns / 1e9)
        elif begin is not None and time.monotonic_ns() - begin.at_ns > plan.seconds * 1e9:
            break
        stamped_ns = time.monotonic_ns()
        published.append((stamped_ns, contender.publish(stamped_ns, rows[step % _SAMPLED_STEPS])))
        step += 1
    control.send(step)
    control.recv()  # the consumer holds everything: all threads here have done their work too
    control.send({"start_ns": start_ns, "published": published, "begin": begin, "end": meter.read()})


def _consume(contender: Contender, plan: Plan, control: Connection) -> None:
    loop = uvloop.new_event_loop()
    asyncio.set_event_loop(loop)
    inbox = Inbox(loop, plan, Meter())

    def on_error(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        inbox.fail(context.get("exception") or RuntimeError(context["message"]))

    loop.set_exception_handler(on_error)
    contender.open_consumer(loop, inbox)
    loop.add_reader(control.fileno(), lambda: inbox.expect(control.recv()))
    control.send(control.fileno())
    loop.run_forever()
    os.set_blocking(control.fileno(), True)  # the loop has made it non-blocking
    if inbox.error is not None:
        raise inbox.error
    if contender.carries_tokens:
        _check(contender.name, inbox.tokens, sampled_tokens(plan.streams))
    # Without a cadence the batches are too many to be sent, and nothing needs them.
    control.send({"marks": inbox.marks, "batches": inbox.batches if plan.step_ns else []})


def _check(name: str, streams: list[list[int]], table: NDArray[np.uint32]) -> None:
    """SystemExit unless every stream holds the same number of tokens, and those that were sent, in order."""
    lengths = sorted({len(tokens) for tokens in streams})
    if len(lengths) != 1:
        raise SystemExit(f"{name} lost or repeated tokens: streams hold between {lengths[0]} and {lengths[-1]}.")
    steps = np.arange(lengths[0]) % len(table)
    for stream, tokens in enumerate(streams):
        wrong = np.flatnonzero(np.array(tokens) != table[steps, stream])
        if len(wrong):
            raise SystemExit(f"{name} delivered a wrong token: number {wrong[0]} of stream {stream}.")


def _child(role: Any, contender: Contender, plan: Plan, control: Connection, parent: int) -> None:
    """The start of both processes: they end with their parent, and leave Ctrl-C to it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDS)
    if not die_with_parent(parent):
        return
    if plan.cpus is not None:
        os.sched_setaffinity(0, {plan.cpus[role is _consume]})
    gc.collect()
    gc.freeze()  # what was inherited is not the contender's garbage to look through
    role(contender, plan, control)


# ---- their parent ----------------------------------------------------------------------------------------------


class _Process:
    """A forked process and the connection to it; leaving `stack` kills it if it still runs."""

    def __init__(self, stack: contextlib.ExitStack, role: Any, contender: Contender, plan: Plan) -> None:
        self.name = f"{contender.name}'s {role.__name__.strip('_')} process"
        self._deadline = time.monotonic() + _PATIENCE + plan.seconds + (plan.warmup + plan.steps) * plan.step_ns / 1e9
        self.control, theirs = multiprocessing.Pipe()
        self.process: BaseProcess = multiprocessing.get_context("fork").Process(
            target=_child, args=(role, contender, plan, theirs, os.getpid()), daemon=True
        )
        sys.stderr.flush()
        # Python loses a Ctrl-C that comes in its hooks after a fork, and no code would have the process yet.
        signal.pthread_sigmask(signal.SIG_BLOCK, _ENDS)
        self.process.start()
        stack.callback(self.end)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDS)
        theirs.close()

    def receive(self, other: _Process | None = None) -> Any:
        """What the process sends next; SystemExit if it, or the other one, has failed, or takes too long."""
        others = {other.process.sentinel: other} if other else {}
        while ready := wait([self.control, *others], max(0.0, self._deadline - time.monotonic())):
            if self.control in ready:
                with contextlib.suppress(EOFError):
                    return self.control.recv()
                self.process.join()
                raise SystemExit(f"{self.name} failed; its error is above.")
            for sentinel in [sentinel for sentinel in others if sentinel in ready]:
                ended = others.pop(sentinel)
                ended.process.join()
                if ended.process.exitcode != 0:  # else it is through, and quicker than this one
                    raise SystemExit(f"{ended.name} failed; its error is above.")
        raise SystemExit(f"{self.name} is {_PATIENCE:.0f} s late: tokens were lost, or it hangs.")

    def end(self) -> None:
        """Kill it if it still runs."""
        self.process.kill()
        self.process.join()
        self.control.close()


def _run(
    kind: type[Contender], plan: Plan, *, trace: bool
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Counter[str]] | None]:
    """What producer and consumer report, and, with `trace`, the system calls of both."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-transport-")))
        contender = kind(plan.streams, folder)
        stack.callback(contender.close)
        consumer = _Process(stack, _consume, contender, plan)
        consumer_fd = consumer.receive()
        producer = _Process(stack, _produce, contender, plan)
        producer_fd = producer.receive()
        tracers = {}
        if trace:
            for role, process, fd in (("producer", producer, producer_fd), ("consumer", consumer, consumer_fd)):
                tracers[role] = Tracer(process.process.pid, fd, folder / role)
                stack.callback(tracers[role].end)
        producer.control.send("go")
        steps = producer.receive(consumer)
        if not plan.step_ns:
            consumer.control.send(steps * plan.streams)
        consumed = consumer.receive()
        producer.control.send("done")
        produced = producer.receive()
        consumer.process.join()
        producer.process.join()
        calls = {role: tracer.calls() for role, tracer in tracers.items()}
        traces = {role: found for role, found in calls.items() if found is not None}
    return produced, consumed, traces if trace and len(traces) == len(tracers) else None
