"""What structured outputs cost, and what those beside them notice.

    python benchmarks/bench_grammars.py --save

Masks: the time that each mask takes where it is filled, on its thread beside the model's, in a batch of 8 outputs of
several schemas.

Steps: time and processor time of a decode step at batch 1 and 32, in one process without a server: in an engine that
has had no grammar yet (the route without: none of its threads run); and with no, half and all
sequences constrained in one that has. All take turns, in every second round backwards; `beside` is the ratio of the
medians to the first.

Refusals: the ITL of 32 streams of a server on its own, and while clients send it schemas that take more than the limit
to compile, each another one; `a step` is the median ITL of the former.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import itertools
import json
import statistics
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from bench_serving import percentile
from engine_rig import Rig, add_model_options, label, load_runner, model_folder, random_prompts, variant
from own_server import OwnServer
from program import argument_parser, finish, integers, progress
from saving import table
from sse_client import http_request, run_stream

from rbee.grammars import vocabulary
from rbee.messages import FinishReason
from rbee.server.protocols.output_form import of_schema

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    import numpy as np
    from numpy.typing import NDArray

    from rbee.engine.runners.interface import ModelRunner
    from rbee.grammars.matcher import Matcher
    from rbee.grammars.vocabulary import Vocabulary

_STRING, _INTEGER = {"type": "string"}, {"type": "integer"}
_PERSON = {
    "type": "object",
    "properties": {"name": _STRING, "age": _INTEGER, "tags": {"type": "array", "items": _STRING}},
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}
_PEOPLE = {"type": "array", "items": _PERSON, "minItems": 1000}  # ends within no benchmark
_SCHEMAS: dict[str, dict[str, Any]] = {
    "people": _PEOPLE,
    "any object": {"type": "object", "minProperties": 1000},
    "patterns": {
        "type": "array",
        "items": {"type": "string", "pattern": r"^[a-z]+(-[a-z]+)*@[a-z.]+$"},
        "minItems": 999,
    },
    "enum of 2000": {"type": "array", "items": {"enum": [f"value {n}" for n in range(2000)]}, "minItems": 999},
    "200 properties": {
        "type": "array",
        "items": {"type": "object", "properties": {f"property_{n}": _STRING for n in range(200)}},
        "minItems": 999,
    },
}
_ROUTE_WITHOUT = "no grammar yet"
_SHARES = {_ROUTE_WITHOUT: 0.0, "none": 0.0, "half": 0.5, "all": 1.0}
_WARM_STEPS = 4


class TimedMatcher:
    """A matcher that keeps how long its masks take."""

    def __init__(self, matcher: Matcher, times_us: list[float]) -> None:
        self._matcher, self._times_us = matcher, times_us
        self.accept = matcher.accept

    def copy(self) -> TimedMatcher:
        return TimedMatcher(self._matcher.copy(), self._times_us)

    def fill(self, mask: NDArray[np.uint32]) -> bool:
        started = time.perf_counter_ns()
        may_end = self._matcher.fill(mask)
        self._times_us.append((time.perf_counter_ns() - started) / 1e3)
        return may_end


class TimedVocabulary:
    """A vocabulary whose matchers do that."""

    def __init__(self, known: Vocabulary) -> None:
        self._known = known
        self.num_words = known.num_words
        self.times_us: list[float] = []

    def compile(self, source: str) -> TimedMatcher:
        return TimedMatcher(self._known.compile(source), self.times_us)


def measure_masks(runner: ModelRunner, known: Vocabulary, schema: dict[str, Any], tokens: int) -> dict[str, float]:
    """Of one schema's outputs."""
    timed = TimedVocabulary(known)
    with contextlib.ExitStack() as stack:
        rig = Rig(stack, runner, load_vocabulary=lambda: timed)  # type: ignore[arg-type,return-value]
        for seed, prompt in enumerate(random_prompts(8, 16, runner.vocab_size, 1)):
            rig.submit(
                prompt,
                time.monotonic_ns(),
                max_tokens=tokens,
                grammar=of_schema(schema, "").source,
                temperature=0.8,
                seed=seed,
            )
        _run(rig)
    times = timed.times_us
    return {
        "masks": len(times),
        **{f"p{p}_us": round(percentile(times, p), 1) for p in (50, 99)},
        "max_us": round(max(times), 1),
    }


class Steps(NamedTuple):
    """Milliseconds of each decode step, and of all processors for all of them."""

    times: list[float]
    cpu: float


def measure_steps(runner: ModelRunner, known: Vocabulary, batch: int, share: str, *, tokens: int, seed: int) -> Steps:
    """Those of a batch of which this share follows a grammar."""
    with contextlib.ExitStack() as stack:
        rig = Rig(stack, runner, prefix_caching=False, load_vocabulary=lambda: known)
        people = of_schema(_PEOPLE, "").source
        if share != _ROUTE_WITHOUT:
            rig.submit([1], time.monotonic_ns(), max_tokens=2, grammar=people)
            _run(rig)
        streams = [
            rig.submit(
                prompt,
                time.monotonic_ns(),
                max_tokens=1000,
                temperature=0.8,
                seed=number,
                grammar=people if number < round(_SHARES[share] * batch) else "",
            )
            for number, prompt in enumerate(random_prompts(batch, 32, runner.vocab_size, seed))
        ]
        while min(len(stream.commit_ns) for stream in streams) < _WARM_STEPS:
            if not rig.step():
                time.sleep(0.001)
        times = []
        cpu = time.process_time()
        for _ in range(tokens):
            started = time.perf_counter_ns()
            rig.step()
            times.append((time.perf_counter_ns() - started) / 1e6)
        cpu = time.process_time() - cpu
        assert not any(stream.finish for stream in streams), "none has ended"
        rig.core.end_all(FinishReason.ABORT)
    return Steps(times, cpu * 1e3)


def steps_rows(found: dict[tuple[int, str], list[Steps]]) -> dict[str, dict[str, float]]:
    """A row of figures for each batch and share; the first of each batch is what the others stand beside."""
    rows: dict[str, dict[str, float]] = {}
    for (batch, share), rounds in found.items():
        times = [time for one in rounds for time in one.times]
        p50 = statistics.median(statistics.median(one.times) for one in rounds)
        cpu = statistics.median(one.cpu / len(one.times) for one in rounds)
        row = {"steps": len(times), "p50_ms": p50, "p99_ms": percentile(times, 99), "cpu_ms": cpu}
        first = rows.get(f"{batch}, {_ROUTE_WITHOUT}", row)
        row |= {"beside": p50 / first["p50_ms"], "cpu_beside": cpu / first["cpu_ms"]}
        rows[f"{batch}, {share}"] = {name: round(value, 3) for name, value in row.items()}
    return rows


def _run(rig: Rig) -> None:
    """Until there is nothing left to do, also no grammar to build."""
    while rig.step() or rig.core.gauges().sequences_waiting:
        pass


def slow_schema(number: int) -> dict[str, Any]:
    """One that takes more than the limit to compile, each another one."""
    return {"type": "object", "properties": {f"p{number}_{n}": _STRING for n in range(8000)}}


def status_of(address: str, body: str) -> int:
    """That of the answer to a completion."""
    with contextlib.closing(http.client.HTTPConnection(address, timeout=300)) as connection:
        connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
        return connection.getresponse().status


async def measure_refusals(
    server: OwnServer, options: argparse.Namespace, numbers: Iterator[int] | None
) -> dict[str, Any]:
    """The gaps of all streams; while they run, the slow schemas of these numbers are refused, if there are some."""
    body = {"prompt": "x", "max_tokens": options.stream_tokens, "stream": True}
    host, port, request = http_request(server.url, "/v1/completions", body)
    streams = [asyncio.create_task(run_stream(host, port, request, 300)) for _ in range(options.streams)]
    refused: list[float] = []
    done = asyncio.Event()

    async def send_schemas(numbers: Iterator[int]) -> None:
        for number in numbers:
            asked = json.dumps({"prompt": "x", "guided_json": slow_schema(number)})
            started = time.monotonic()
            status = await asyncio.to_thread(status_of, f"{host}:{port}", asked)
            if status != 400:
                raise SystemExit(f"A schema beyond the limit was answered with {status}.")
            refused.append(time.monotonic() - started)
            if done.is_set():
                return

    senders = [asyncio.create_task(send_schemas(numbers)) for _ in range(2)] if numbers else []
    gaps: list[float] = []
    for stream in await asyncio.gather(*streams):
        times = [frame.read_ns for frame in stream.frames() if frame.data != "[DONE]"]
        if stream.error:
            raise SystemExit(stream.error)
        gaps += [(late - early) / 1e6 for early, late in itertools.pairwise(times)]
    done.set()
    await asyncio.gather(*senders)
    figures = {f"itl_p{p}_ms": round(percentile(gaps, p), 3) for p in (50, 99)}
    return {**figures, "refused": len(refused), "seconds": round(statistics.median(refused), 2) if refused else None}


def main() -> None:
    """Measure all three, and report."""
    parser = argument_parser(__doc__, "grammars.{json,md}", rounds=5)
    add_model_options(parser)
    parser.add_argument("--tokens", type=int, default=120, help="of each output (default %(default)s)")
    parser.add_argument("--batches", type=integers, default=[1, 32], help="(default 1,32)")
    parser.add_argument("--streams", type=int, default=32, help="beside the refusals (default %(default)s)")
    parser.add_argument("--stream-tokens", type=int, default=600, help="of each of them (default %(default)s)")
    options = parser.parse_args()
    folder = model_folder(options.model)
    runner, known = load_runner(folder, options), vocabulary.load(str(folder))

    masks = {}
    for name, schema in _SCHEMAS.items():
        masks[name] = measure_masks(runner, known, schema, options.tokens)
        progress(f"masks of {name}: {masks[name]}")
    found: dict[tuple[int, str], list[Steps]] = {
        (batch, share): [] for batch in options.batches for share in _SHARES if batch > 1 or share != "half"
    }
    for number in range(options.rounds):
        for batch, share in [*found][:: 1 if number % 2 == 0 else -1]:
            found[batch, share].append(measure_steps(runner, known, batch, share, tokens=options.tokens, seed=number))
            progress(f"round {number + 1}/{options.rounds}  batch {batch}, {share} constrained")
    steps = steps_rows(found)
    server = OwnServer("--model", "synthetic", "--synthetic-step-ms", "10")
    rounds: dict[str, list[dict[str, Any]]] = {"alone": [], "beside refusals": []}
    numbers = itertools.count()  # a schema that comes again is remembered
    try:
        for number in range(options.rounds):
            for name, figures in rounds.items():
                figures.append(asyncio.run(measure_refusals(server, options, None if name == "alone" else numbers)))
                progress(f"round {number + 1}/{options.rounds}  streams {name}: {figures[-1]}")
    finally:
        server.stop()
    itl = {
        name: {key: statistics.median(one[key] for one in some) for key in ("itl_p50_ms", "itl_p99_ms")}
        for name, some in rounds.items()
    }
    moved = itl["beside refusals"]["itl_p99_ms"] - itl["alone"]["itl_p99_ms"]
    step = itl["alone"]["itl_p50_ms"]
    refused = sum(one["refused"] for one in rounds["beside refusals"])
    seconds = statistics.median(one["seconds"] for one in rounds["beside refusals"])
    verdict = "met" if moved < step and refused else "MISSED"
    text = "\n\n".join(
        [
            f"{label(runner, options)}. Masks, by schema:\n\n" + _table(masks),
            "Decode steps, by batch and constrained share:\n\n" + _table(steps),
            f"ITL of {options.streams} streams of the synthetic model, medians of {options.rounds} rounds:\n\n"
            + _table(itl),
            f"{refused} schemas came meanwhile, and were refused after {seconds:.2f} s in the median.",
            f"The p99 moved by {moved:.3f} ms, a step has {step:.3f} ms: {verdict}.",
        ]
    )
    result: dict[str, Any] = {
        "benchmark": "grammars",
        "masks": masks,
        "steps": steps,
        "itl": itl,
        "rounds": json.loads(json.dumps(rounds)),
        "p99_moved_ms": round(moved, 3),
    }
    finish(options, f"grammars{variant(options)}", "Structured outputs", text, result)


def _table(figures: dict[str, dict[str, Any]]) -> str:
    head = ["", *(key.replace("_", " ") for key in next(iter(figures.values())))]
    return table(head, [[name, *(f"{value:g}" for value in row.values())] for name, row in figures.items()])


if __name__ == "__main__":
    main()
