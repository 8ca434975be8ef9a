"""Whether Retry-After is the time that a refused client waits, under steady load.

    python benchmarks/bench_admission.py --save

One server per pattern, with 64 places and the synthetic model. Each of `--clients` clients streams an answer, thinks
for up to a second, and asks again; one that is refused comes back when it was told to. They begin one after the other
within eight seconds. Besides, one `impatient` client asks ten times a second. Of each request that was refused at
first, the report compares what it was told then with the time until it was taken: `within 2x` is the share of those
that were told at most twice and at least half as much, where less than a second counts as one. The first `--warm`
seconds are left out.

* equal: every answer takes about eight seconds.
* mixed: four of five take about two seconds, the others sixteen.
* queued: sixteen run at once, for about two seconds each, and the others wait in the server.
* tokens: prompts of 10 to 400 tokens behind --max-queued-tokens 1000; the time is that of prompts.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from typing import Any, NamedTuple

from own_server import OwnServer
from program import argument_parser, finish, progress
from saving import table
from sse_client import http_request

_STEP_MS = 50.0
_PLACES = 64
_SPREAD = 8.0  # seconds within which the clients begin
_PATTERNS: dict[str, list[str]] = {  # options of the server
    "equal": ["--max-requests", str(_PLACES)],
    "mixed": ["--max-requests", str(_PLACES)],
    "queued": ["--max-requests", str(_PLACES), "--max-num-seqs", "16"],
    "tokens": ["--max-queued-tokens", "1000", "--max-num-batched-tokens", "32", "--no-prefix-caching"],
}


class Wait(NamedTuple):
    """One request that was refused: when, what it was told at first, its attempts, and how long until it was taken."""

    at: float
    told: float
    attempts: int
    waited: float

    @property
    def within_two(self) -> bool:
        waited = max(self.waited, 1.0)
        return waited / 2 <= self.told <= waited * 2


def payload(pattern: str, rng: random.Random) -> dict[str, Any]:
    """The body of one request."""
    seconds = 8.0
    prompt = f"{rng.random()}"
    if pattern == "mixed":
        seconds = rng.choice([2.0, 2.0, 2.0, 2.0, 16.0])
    if pattern == "queued":
        seconds = 2.0
    if pattern == "tokens":
        seconds = 1.0
        prompt = (prompt * 40)[: rng.randint(10, 400)]
    tokens = round(seconds * rng.uniform(0.9, 1.1) * 1000 / _STEP_MS)
    return {"prompt": prompt, "max_tokens": tokens, "ignore_eos": True, "stream": True}


class Client:
    """One connection, which is opened again when the server has closed it."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._writer: asyncio.StreamWriter | None = None

    async def attempt(self, body: dict[str, Any]) -> int:
        """Send a request; 0 if it is taken, with its answer still to be read, else the seconds of Retry-After."""
        try:
            head = await self._head(body)
        except (asyncio.IncompleteReadError, ConnectionError):  # it was idle for too long
            self.close()
            head = await self._head(body)
        if " 200 " in head[0] + " ":
            return 0
        fields = dict(line.split(": ", 1) for line in head[1:] if line)
        await self._reader.readexactly(int(fields["content-length"]))
        return int(fields["retry-after"])

    async def _head(self, body: dict[str, Any]) -> list[str]:
        host, port, request = http_request(self._url, "/v1/completions", body)
        if self._writer is None:
            self._reader, self._writer = await asyncio.open_connection(host, port)
        self._writer.write(request)
        return (await self._reader.readuntil(b"\r\n\r\n")).decode().lower().split("\r\n")

    async def rest(self) -> None:
        """Read the answer that was begun."""
        while size := int(await self._reader.readline(), 16):
            await self._reader.readexactly(size + 2)
        await self._reader.readline()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._writer = None


async def load(
    url: str, pattern: str, rng: random.Random, waits: list[Wait], *, begin: float = 0.0, impatient: bool = False
) -> None:
    """One client, from `begin` seconds on until it is cancelled."""
    client = Client(url)
    try:
        await asyncio.sleep(begin)
        while True:
            body, since, first, attempts = payload(pattern, rng), time.monotonic(), 0, 1
            while told := await client.attempt(body):
                first = first or told
                attempts += 1
                await asyncio.sleep(0.1 if impatient else told)
            if first:
                waits.append(Wait(since, first, attempts, time.monotonic() - since))
            await client.rest()
            await asyncio.sleep(rng.uniform(0, 1))
    finally:
        client.close()


async def run(url: str, pattern: str, clients: int, seconds: float, warm: float) -> dict[str, list[Wait]]:
    """The waits of the clients that obey, and of the impatient one."""
    waits: dict[str, list[Wait]] = {"obeys": [], "impatient": []}
    started = time.monotonic()
    tasks = [
        asyncio.create_task(load(url, pattern, random.Random(n), waits["obeys"], begin=_SPREAD * n / clients))
        for n in range(clients)
    ]
    tasks.append(asyncio.create_task(load(url, pattern, random.Random(-1), waits["impatient"], impatient=True)))
    done, _ = await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_EXCEPTION)
    for task in tasks:
        task.cancel()
    for task in done:
        task.result()
    await asyncio.gather(*tasks, return_exceptions=True)
    return {who: [wait for wait in seen if wait.at > started + warm] for who, seen in waits.items()}


def row(pattern: str, who: str, waits: list[Wait]) -> dict[str, Any]:
    """The figures of one kind of client."""
    return {
        "pattern": pattern,
        "client": who,
        "refused": len(waits),
        "told p50": statistics.median([wait.told for wait in waits]) if waits else None,
        "waited p50": round(statistics.median([wait.waited for wait in waits]), 1) if waits else None,
        "within 2x": round(sum(wait.within_two for wait in waits) / len(waits), 2) if waits else None,
        "attempts": round(statistics.mean([wait.attempts for wait in waits]), 1) if waits else None,
    }


def main() -> None:
    """Pattern by pattern."""
    parser = argument_parser(__doc__, "admission.{json,md}")
    parser.add_argument("--clients", type=int, default=96, help="that come back when told (default %(default)s)")
    parser.add_argument("--seconds", type=float, default=120.0, help="per pattern (default %(default)s)")
    parser.add_argument("--warm", type=float, default=30.0, help="seconds left out (default %(default)s)")
    parser.add_argument("--patterns", default=",".join(_PATTERNS), help="in turn (default %(default)s)")
    options = parser.parse_args()
    rows = []
    for pattern in options.patterns.split(","):
        progress(pattern)
        server = OwnServer(
            *["--model", "synthetic", "--synthetic-step-ms", str(_STEP_MS), "--drain-timeout", "0"],
            *["--no-log-requests", *_PATTERNS[pattern]],
        )
        try:
            waits = asyncio.run(run(server.url, pattern, options.clients, options.seconds, options.warm))
        finally:
            server.stop()
        rows += [row(pattern, who, seen) for who, seen in waits.items()]
    columns = list(rows[0])
    report = f"{options.clients} clients, {options.seconds:g} s per pattern.\n\n"
    report += table(columns, [[str(line[column]) for column in columns] for line in rows])
    finish(options, "admission", "Retry-After and the wait", report, {"benchmark": "admission", "rows": rows})


if __name__ == "__main__":
    main()
