"""What a chat request costs before the engine has it: from its first byte on the socket to its record at the engine.

    python benchmarks/bench_round_trip.py --save

A real server with the default model's tokenizer and chat template, in a process of its own, on a real socket. At the
other end of its control channel a process notes when each record has arrived, and ends the sequence with one token:
there is no engine that would take a core. Every request is a streamed chat on a connection that is kept, and has
another text as its prompt: a piece of this repository's prose, in which every twentieth word is one that no request had
before.

Requests come one after the other; one by one, each after the server has slept for `--pause-ms`; and 8 at once on 8
connections, after such a pause too. A processor that has slept has other things in its caches, and its clock may be
slower: what the pause adds is that. Sizes and ways take turns in every round.

* `round_trip_ms`: from the client's send(2) until the record has been read from the control channel.
* `reading_ms`: the part of it from when the server has the whole request: parse, validate, template, tokenize, submit.
* `floor_ms`: the same way without the work: a bare protocol on a socket of the same event loop takes as many bytes, and
  writes as many to the control channel; one by one.
* `held_ms`: how long the server's event loop did not come round, at most, from the request to the end of its answer. A
  timer beats in the loop every 0.2 ms, and notes how late each beat is looked at; what holds the loop is up to a beat
  longer. These requests are others than those above: a beat keeps the processor awake, and takes time itself.
* `held_cpu_ms`: the same in CPU time of the loop's thread between two looks at the timer, which the rest of the machine
  does not change: what the loop has worked on without a break. That it waited for Python's lock is not in it.
* `idle_held_ms`, `idle_held_cpu_ms`: both in pieces of 2 ms without any request: what the timer, the kernel and the
  machine add.
* `parts_us`: each step alone, called one after the other in the server's process and event loop, on the same prompts.

p50, p99 and max are over all rounds; the first requests of each size are not counted. The lines at the beginning have
the targets, at 1,000 tokens, one after the other and after a pause: a round trip of at most 1 ms (p50), and the loop
held for at most 2 ms (p99).
"""

from __future__ import annotations

import bisect
import itertools
import json
import multiprocessing
import os
import random
import socket
import string
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from engine_rig import model_folder
from program import argument_parser, command_line, finish, integers, progress
from round_trip_processes import BEAT_NS, FLOOR_END, MODEL, PARTS, Beat, Link, Noted, note_submissions, serve
from saving import table
from sse_client import http_request

from rbee.config import DEFAULT_MODEL
from rbee.server.text import served_model

if TYPE_CHECKING:
    import argparse
    from multiprocessing.connection import Connection

    from rbee.server.text.served_model import ServedModel

_ROOT = Path(__file__).resolve().parents[1]
_AT_ONCE = 8
_PARTS_AT_ONCE = 16
_PATIENCE = 30.0  # seconds for an answer
_WARM = 20  # requests of each size
_IDLE_S = 1.0  # of each round
_IDLE_PIECE_NS = 2_000_000
_TARGET_SIZE, _TARGET_MS, _TARGET_HELD_MS = 1000, 1.0, 2.0
_NEXT, _ONE, _MANY = "one after the other", "one, after a pause", f"{_AT_ONCE} at once"
_NEW_WORD = 20
_CHUNKS_END = b"0\r\n\r\n"


class Prompts:
    """Texts of so many tokens each, the chat template's included, no two the same."""

    def __init__(self, model: ServedModel) -> None:
        files = [_ROOT / "README.md", _ROOT / "CHANGELOG.md", _ROOT / "LICENSE", *sorted((_ROOT / "docs").glob("*.md"))]
        lines = [line for path in files for line in path.read_text().splitlines() if not line.startswith("|")]
        self._words = "\n".join(lines).split(" ")
        self._codec = model.codec
        assert model.chat_template is not None
        empty = model.chat_template.render([{"role": "user", "content": ""}])
        self._of_template = len(model.codec.encode_pieces(empty))
        self._random = random.Random(1)

    def next(self, size: int) -> str:
        """Cut out of the prose at random, and every twentieth word replaced by one that there is not."""
        start = self._random.randrange(len(self._words) - size)
        words = self._words[start : start + size]  # a word has one token at least
        for place in range(0, len(words), _NEW_WORD):
            words[place] = "".join(self._random.choices(string.ascii_lowercase, k=7))
        tokens = self._codec.encode(" ".join(words), add_special_tokens=False)
        return self._codec.decode(tokens[: size - self._of_template])


class Trip(NamedTuple):
    """One request, times in ns."""

    sent: int
    noted: Noted
    answered: int  # of the last request, if several came at once


class Bench:
    """The two processes, and the connections to them."""

    def __init__(self, folder: Path) -> None:
        # Children are forked before this process has tokenized anything: the library would do without threads in them.
        context = multiprocessing.get_context("fork")
        link = Link.over(*socket.socketpair())
        self._notes, notes = multiprocessing.Pipe()
        self._control, control = multiprocessing.Pipe()
        self._children = [
            context.Process(target=note_submissions, args=(link, notes, os.getpid()), daemon=True),
            context.Process(target=serve, args=(link, control, folder, os.getpid()), daemon=True),
        ]
        for child in self._children:
            child.start()
        link.server.close()
        link.engine.close()
        address, floor = _received(self._control)
        self._host, self._port = address
        self._connections = [_connect(address) for _ in range(_AT_ONCE)]
        self._floor = _connect(floor)
        self._number = 0

    def body(self, prompt: str) -> dict[str, Any]:
        """A request whose seed is its number."""
        self._number += 1
        messages = [{"role": "user", "content": prompt}]
        return {"model": MODEL, "messages": messages, "stream": True, "max_tokens": 1, "seed": self._number}

    def ask(self, prompts: list[str], pause: float = 0.0) -> list[Trip]:
        """After a pause send requests at once, each on a connection of its own, and read their answers."""
        requests = []
        for prompt in prompts:
            body = self.body(prompt)
            url = f"http://{self._host}:{self._port}"
            requests.append((body["seed"], http_request(url, "/v1/chat/completions", body)[2]))
        time.sleep(pause)
        sent = {}
        for (number, request), sock in zip(requests, self._connections, strict=False):
            sent[number] = time.monotonic_ns()
            sock.sendall(request)
        for _, sock in zip(requests, self._connections, strict=False):
            _read_answer(sock)
        answered = time.monotonic_ns()
        notes = [_received(self._notes) for _ in requests]
        return [Trip(sent[note.number], note, answered) for note in notes]

    def floor(self, prompt: str, tokens: int, pause: float) -> Trip:
        """The same number of bytes, for nothing."""
        request = json.dumps(self.body(prompt)).encode()
        data = b"%d %d %b%b" % (self._number, tokens, request, FLOOR_END)
        time.sleep(pause)
        sent = time.monotonic_ns()
        self._floor.sendall(data)
        return Trip(sent, _received(self._notes), time.monotonic_ns())

    def start_pulse(self) -> None:
        """From now on the server's event loop has a pulse."""
        self._control.send("pulse")
        _received(self._control)

    def end_pulse(self) -> list[Beat]:
        """All beats since."""
        self._control.send("no pulse")
        members = _received(self._control)
        return list(itertools.starmap(Beat, zip(members[::3], members[1::3], members[2::3], strict=True)))

    def parts(self, prompts: list[str], pause: float) -> dict[str, list[int]]:
        """The time of each of PARTS for each prompt, in ns."""
        taken: dict[str, list[int]] = {part: [] for part in PARTS}
        for start in range(0, len(prompts), _PARTS_AT_ONCE):
            some = prompts[start : start + _PARTS_AT_ONCE]
            self._control.send([json.dumps(self.body(prompt)).encode() for prompt in some])
            for part, times in _received(self._control).items():
                taken[part] += times
            for _ in some:
                _received(self._notes)
            time.sleep(pause)  # their rings become free
        return taken

    def stop(self) -> None:
        """End the two processes."""
        for sock in (*self._connections, self._floor):
            sock.close()
        self._control.send("stop")
        for child in reversed(self._children):
            child.join(_PATIENCE)
            if child.exitcode != 0:
                raise SystemExit(f"A process of the benchmark ended with {child.exitcode}; its error is above.")


def _received(connection: Connection) -> Any:
    if not connection.poll(_PATIENCE):
        raise SystemExit(f"A process of the benchmark said nothing for {_PATIENCE:g} s.")
    return connection.recv()


def _connect(address: tuple[str, int]) -> socket.socket:
    sock = socket.create_connection(address, timeout=_PATIENCE)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def _read_answer(sock: socket.socket) -> None:
    seen = b""
    while not seen.endswith(_CHUNKS_END):
        piece = sock.recv(65536)
        seen += piece
        if not piece or not seen.startswith(b"HTTP/1.1 200"[: len(seen)]):
            raise SystemExit(f"A request was not answered: {seen[:300]!r}")
    if b'"content":' not in seen or b"[DONE]" not in seen:
        raise SystemExit(f"An answer is not as it must be: {seen!r}")


# ---- figures ---------------------------------------------------------------------------------------------------


class Level:
    """All that was measured of one size and one way."""

    def __init__(self, size: int, way: str) -> None:
        self.size = size
        self.way = way
        self._trips: list[Trip] = []
        self._floor: list[Trip] = []
        self._held: list[int] = []
        self._held_cpu: list[int] = []
        self._parts: dict[str, list[int]] = {part: [] for part in PARTS}

    def measure(self, bench: Bench, prompts: Prompts, options: argparse.Namespace) -> None:
        """One round: round trips, holds, and of single requests the floor and the parts."""
        at_once = _AT_ONCE if self.way == _MANY else 1
        pause = 0.0 if self.way == _NEXT else options.pause_ms / 1e3
        number = max(options.requests // at_once, 1)

        def ask() -> list[Trip]:
            texts = [prompts.next(self.size) for _ in range(at_once)]
            return bench.ask(texts, pause)

        self._trips += [trip for _ in range(number) for trip in ask()]
        bench.start_pulse()
        asked = [ask() for _ in range(number)]
        time.sleep(pause)
        times = [(min(trip.sent for trip in trips), trips[0].answered) for trips in asked]
        late, cpu = longest_holds(bench.end_pulse(), times)
        self._held += late
        self._held_cpu += cpu
        if at_once > 1:
            return
        for _ in range(number):
            self._floor.append(bench.floor(prompts.next(self.size), self.size, pause))
        if not pause:
            return
        for part, taken in bench.parts([prompts.next(self.size) for _ in range(number)], pause).items():
            self._parts[part] += taken

    def figures(self) -> dict[str, Any]:
        """Milliseconds; of parts microseconds."""
        figures: dict[str, Any] = {
            "prompt_tokens": self.size,
            "way": self.way,
            "requests": len(self._trips),
            "round_trip_ms": _ms([trip.noted.submitted_ns - trip.sent for trip in self._trips]),
            "reading_ms": _ms([trip.noted.submitted_ns - trip.noted.received_ns for trip in self._trips]),
            "held_ms": _ms(self._held),
            "held_cpu_ms": _ms(self._held_cpu),
        }
        if self._floor:
            figures["floor_ms"] = _ms([trip.noted.submitted_ns - trip.sent for trip in self._floor])
        if self._parts[PARTS[0]]:
            figures["parts_us"] = {part: _quantiles(taken, 1e3) for part, taken in self._parts.items()}
        return figures


def longest_holds(beats: list[Beat], times: list[tuple[int, int]]) -> tuple[list[int], list[int]]:
    """For each (begin, end) in ns the most that a beat was late, and the most CPU time up to one.

    The first one behind the end counts too.
    """
    moments = [beat.moment for beat in beats]
    late, cpu = [], []
    for begin, end in times:
        first, last = bisect.bisect_left(moments, begin), bisect.bisect_left(moments, end)
        late.append(max(beat.late for beat in beats[first : last + 1]))
        cpu.append(max(beat.cpu for beat in beats[first : last + 1]))
    return late, cpu


def idle_holds(bench: Bench) -> tuple[list[int], list[int]]:
    """The same for pieces of a time without requests."""
    time.sleep(0.1)
    bench.start_pulse()
    begin = time.monotonic_ns()
    time.sleep(_IDLE_S)
    beats = bench.end_pulse()
    pieces = range(begin, beats[-1].moment - _IDLE_PIECE_NS - BEAT_NS, _IDLE_PIECE_NS)
    return longest_holds(beats, [(piece, piece + _IDLE_PIECE_NS) for piece in pieces])


def _quantiles(values: list[int], unit: float) -> dict[str, float]:
    ordered = sorted(values)
    picked = {"p50": len(ordered) // 2, "p99": int(len(ordered) * 0.99), "max": len(ordered) - 1}
    return {name: round(ordered[index] / unit, 3) for name, index in picked.items()}


def _ms(values: list[int]) -> dict[str, float]:
    return _quantiles(values, 1e6)


def verdict(levels: list[dict[str, Any]]) -> str:
    """The targets beside what was measured, a line for each way."""
    lines = []
    for level in levels:
        if level["prompt_tokens"] == _TARGET_SIZE and level["way"] != _MANY:
            trip, held, cpu = level["round_trip_ms"]["p50"], level["held_ms"]["p99"], level["held_cpu_ms"]["p99"]
            lines.append(
                f"* {_TARGET_SIZE} tokens, {level['way']}: p50 of the round trip {trip:.2f} ms, target "
                f"{_TARGET_MS:g}: {'met' if trip <= _TARGET_MS else 'MISSED'}. p99 of the loop's longest hold "
                f"{held:.2f} ms, target {_TARGET_HELD_MS:g}: {'met' if held <= _TARGET_HELD_MS else 'MISSED'}; by CPU "
                f"time {cpu:.2f} ms."
            )
    return "\n".join(lines) or f"The targets are for {_TARGET_SIZE} tokens, which were not measured."


def report(levels: list[dict[str, Any]], idle: dict[str, float]) -> str:
    """Two tables."""
    rows, parts = [], []
    for level in levels:
        cells = [f"{level['prompt_tokens']:,}", level["way"]]
        for name in ("floor_ms", "round_trip_ms", "reading_ms", "held_ms", "held_cpu_ms"):
            figure = level.get(name)
            cells.append("" if figure is None else "{p50:.2f} / {p99:.2f} / {max:.2f}".format(**figure))
        rows.append(cells)
        if taken := level.get("parts_us"):
            cells = ["{p50:,.0f} / {p99:,.0f}".format(**taken[part]) for part in PARTS]
            parts.append([f"{level['prompt_tokens']:,}", *cells])
    head = [
        "prompt tokens",
        "requests come",
        "floor",
        "round trip",
        "of it reading",
        "loop held at most",
        "by CPU time",
    ]
    return (
        f"{verdict(levels)}\n\nMilliseconds, p50 / p99 / max:\n\n{table(head, rows)}\n\n"
        "Without requests the loop is held for {p50:.2f} / {p99:.2f} / {max:.2f} ms.\n\n".format(**idle)
        + f"The parts alone, microseconds, p50 / p99:\n\n{table(['prompt tokens', *PARTS], parts)}"
    )


def main() -> None:
    """Measure all sizes and ways in turn."""
    parser = argument_parser(__doc__, "round_trip.{json,md}", rounds=5)
    parser.add_argument("--tokens", type=integers, default="100,1000,8000", help="of the prompts (default %(default)s)")
    parser.add_argument("--requests", type=int, default=80, help="of each kind in a round (default %(default)s)")
    parser.add_argument("--pause-ms", type=float, default=5.0, help="before a request (default %(default)s)")
    options = parser.parse_args()
    folder = model_folder(DEFAULT_MODEL)
    bench = Bench(folder)
    prompts = Prompts(served_model.load(MODEL, folder))
    levels = [Level(size, way) for size in options.tokens for way in (_NEXT, _ONE, _MANY)]
    idle: list[int] = []
    idle_cpu: list[int] = []
    for size in options.tokens:
        for _ in range(_WARM):
            bench.ask([prompts.next(size)])
    for number in range(options.rounds):
        progress(f"round {number + 1}/{options.rounds}")
        late, cpu = idle_holds(bench)
        idle += late
        idle_cpu += cpu
        for level in levels:
            level.measure(bench, prompts, options)
    bench.stop()
    figures = [level.figures() for level in levels]
    result = {
        "benchmark": "round_trip",
        "pause_ms": options.pause_ms,
        "idle_held_ms": _ms(idle),
        "idle_held_cpu_ms": _ms(idle_cpu),
        "levels": figures,
    }
    preface = f"Made by `{command_line()}`. What each figure is: docstring of `benchmarks/bench_round_trip.py`.\n\n"
    finish(options, "round_trip", "From a request to its record", report(figures, _ms(idle)), result, preface=preface)


if __name__ == "__main__":
    main()
