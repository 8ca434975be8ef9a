"""Streams, slow readers, disconnects and dying engines for minutes or hours: is every stream accounted for?

    make soak ARGS="--hours 2"

256 clients ask one server for one stream after the other: most read to the end, some drop the connection at a random
byte, some read slowly. Once a minute, at a random moment, the engine gets SIGKILL. The synthetic model has a known
answer to every prompt. Each stream must end in one of three ways: finished with all of its tokens, left by its client,
or told an error; its tokens are the first ones of the answer. Anything else is lost. The exit code is 1 if a stream was
lost, or if rings or descriptors are left at the end.

A line for each minute has how many streams have ended, how, tokens per second, and the memory of both processes that no
file backs (RssAnon and swap). `growth`: the least memory of the server in the last fifth of the run, over that in the
second fifth. What is random comes from --seed, which is printed.
"""

from __future__ import annotations

import asyncio
import random
import secrets
import signal
import sys
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import psutil
from faulty_server import FaultyServer, memory_kb
from program import allow_many_files, argument_parser, finish, progress
from saving import table
from soak_clients import Clients

if TYPE_CHECKING:
    import argparse

_LOOK = 1.0  # seconds between two looks at the memory


class Row(NamedTuple):
    """All since the start, but for the rate."""

    seconds: int
    ended: int
    finished: int
    left: int
    told: int
    lost: int
    kills: int
    tokens_per_second: int
    server_kb: int
    engine_kb: int


class Soak:
    """One run."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._server = FaultyServer(
            "synthetic",
            *("--synthetic-step-ms", str(options.step_ms), "--ring-capacity", "256"),
            *("--max-requests", str(2 * options.streams), "--slow-reader-timeout", "20"),
            *("--max-restarts", "1000", "--restart-window", "30", "--hang-timeout", "20"),
        )
        self._seconds = options.minutes * 60 if options.hours is None else options.hours * 3600
        self._period = options.every
        self._chance = random.Random(options.seed)
        self._clients = Clients(self._server.url, options.streams, options.seed)
        self._memory: list[tuple[float, int]] = []  # seconds since the start, kB of the server
        self._engine_kb = 0
        self._kills = self._tokens_shown = 0
        self.rows: list[Row] = []

    async def run(self) -> dict[str, Any]:
        """The result; the server has ended."""
        before = await asyncio.to_thread(self._server.held)
        clients = asyncio.create_task(self._clients.run())
        started = time.monotonic()
        kill_at = self._chance.random() * self._period
        while (now := time.monotonic() - started) < self._seconds and not clients.done():
            if now >= kill_at:
                self._kills += 1
                kill_at = (self._kills + self._chance.random()) * self._period
                for engine in self._engines():
                    engine.send_signal(signal.SIGKILL)
            self._look(now)
            if now >= (len(self.rows) + 1) * self._period:
                self._report(now)
            await asyncio.sleep(_LOOK)
        self._clients.stop()
        await clients
        self._report(time.monotonic() - started)
        await asyncio.to_thread(self._server.until_ready, wanted=True)
        await asyncio.to_thread(self._server.until_rings, 0)
        after = await asyncio.to_thread(self._server.held)
        await asyncio.to_thread(self._server.stop)
        ends = self._clients.ends
        return {
            "streams": self._clients.opened,
            "ends": dict(ends),
            "lost": ends["lost"] + self._clients.opened - ends.total(),
            "problems": self._clients.problems,
            "tokens": self._clients.tokens,
            "kills": self._kills,
            "growth": self._growth(),
            "left": {"rings": after.rings - before.rings, "fds": after.fds - before.fds},
        }

    def _engines(self) -> list[psutil.Process]:
        """The engine; none while it is replaced."""
        children = psutil.Process(self._server.pid).children()
        return [child for child in children if child.is_running() and "rbee.engine" in child.cmdline()]

    def _look(self, now: float) -> None:
        self._memory.append((now, memory_kb(self._server.pid)))
        try:
            self._engine_kb = max((memory_kb(engine.pid) for engine in self._engines()), default=0)
        except (OSError, KeyError, psutil.Error):  # it has just died
            self._engine_kb = 0

    def _report(self, now: float) -> None:
        ends = self._clients.ends
        known = ends["finished"], ends["left"], ends["lost"]
        since = self.rows[-1].seconds if self.rows else 0
        rate = (self._clients.tokens - self._tokens_shown) / max(now - since, 1e-3)
        self._tokens_shown = self._clients.tokens
        row = Row(
            seconds=round(now),
            ended=ends.total(),
            finished=known[0],
            left=known[1],
            told=ends.total() - sum(known),
            lost=known[2],
            kills=self._kills,
            tokens_per_second=round(rate),
            server_kb=self._memory[-1][1],
            engine_kb=self._engine_kb,
        )
        self.rows.append(row)
        progress("  ".join(f"{name} {value}" for name, value in row._asdict().items()))

    def _growth(self) -> float:
        """The server's least memory in the last fifth of the run, over that in the second fifth."""
        end = self._memory[-1][0]
        early = min(kb for seconds, kb in self._memory if end * 0.2 <= seconds <= end * 0.4)
        late = min(kb for seconds, kb in self._memory if seconds >= end * 0.8)
        return round(late / early - 1, 4)


def main() -> None:
    """One run; the exit code says whether anything was lost or left."""
    parser = argument_parser(__doc__, "soak.{json,md}")
    parser.add_argument("--minutes", type=float, default=10.0, help="how long (default %(default)s)")
    parser.add_argument("--hours", type=float, help="the same, in hours")
    parser.add_argument("--streams", type=int, default=256, help="at once (default %(default)s)")
    parser.add_argument("--step-ms", type=float, default=20.0, help="of the synthetic model (default %(default)s)")
    parser.add_argument("--every", type=float, default=60.0, help="seconds per kill and line (default %(default)s)")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(2**31), help="of all that is random")
    options = parser.parse_args()
    progress(f"seed {options.seed}")
    allow_many_files()
    soak = Soak(options)
    result = asyncio.run(soak.run())
    wrong = result["lost"] or any(result["left"].values())
    report = f"{options.streams} streams at once, {result['kills']} engines killed, seed {options.seed}: "
    report += f"{result['streams']} streams, {result['lost']} lost. The server's memory grew by "
    report += f"{result['growth'] * 100:.1f} % from the second fifth of the run to the last.\n\n"
    report += table([name.replace("_", " ") for name in Row._fields], [[str(one) for one in row] for row in soak.rows])
    report += "".join(f"\n\nlost: {problem}" for problem in result["problems"])
    rows = [row._asdict() for row in soak.rows]
    finish(
        options,
        "soak",
        "Streams and faults, for long",
        report,
        {"benchmark": "soak", **result, "rows": rows, "seed": options.seed},
    )
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
