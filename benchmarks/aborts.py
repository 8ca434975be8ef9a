"""What a server holds before and after thousands of requests whose clients went away.

    python benchmarks/aborts.py --aborts 10000

As many requests in each of four states: in the queue; in prefill; in decode; and streams that can be resumed, whose
clients do not come back within --resume-timeout. They come in batches, each of which the server has back before the
next one: all are in their state when their connections are reset. Every prompt is another one.

What is held: rings, KV blocks, descriptors of the server, and memory of both processes that no file backs (RssAnon and
swap). "before" is after a tenth as many aborts, at least 600, because the first requests of a process cost memory that
is kept.
Exit code 1 if a ring, a block or a descriptor is left.
"""

from __future__ import annotations

import itertools
import socket
import sys
import time
from typing import TYPE_CHECKING, Any

from faulty_server import PATIENCE, FaultyServer, Held, hang_up
from program import argument_parser, finish, progress
from saving import table

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

BATCH = 16  # sequences that run at once, and requests that are aborted at once
_WARM = 600  # aborts until allocators have met their largest load; the tokenizers library also remembers 10,000 words
_GRACE = 0.1  # seconds that a stream without a client is kept
_RESUMABLE = {"stream_options": {"resumable": True}}
STATES = ("queued", "prefill", "decode", "parked")


class _Aborting:
    """Opens batches of requests in a state, and resets them."""

    def __init__(self, server: FaultyServer) -> None:
        self._server = server
        self._numbers = itertools.count()

    def _send(self, number: int, size: int, tokens: int, **fields: Any) -> list[socket.socket]:
        sockets = []
        for _ in range(number):
            prompt = f"{next(self._numbers)} " + "x" * size
            sock = socket.create_connection(self._server.address, timeout=PATIENCE)
            sock.sendall(self._server.request(prompt, tokens, **fields))
            sockets.append(sock)
        return sockets

    def _first_tokens(self, sockets: list[socket.socket]) -> list[socket.socket]:
        for sock in sockets:
            while b"data: " not in sock.recv(65536):
                pass
        return sockets

    def _end(self, sockets: list[socket.socket], left: int = 0) -> None:
        for sock in sockets:
            hang_up(sock)
        self._server.until_rings(left)

    def queued(self, number: int) -> None:
        """Behind as many streams as run at once."""
        running = self._first_tokens(self._send(BATCH, 1, 8000))
        waiting = self._send(number, 100, 100)
        self._server.until_rings(BATCH + number)
        self._end(waiting, BATCH)
        self._end(running)

    def prefill(self, number: int) -> None:
        """Prompts that take many steps, none of which has shown a token."""
        sockets = self._send(number, 1800, 8)
        self._server.until_rings(number)
        self._end(sockets)

    def decode(self, number: int) -> None:
        """Streams that have shown tokens."""
        self._end(self._first_tokens(self._send(number, 1, 8000)))

    def parked(self, number: int) -> None:
        """Streams that wait for their clients to come back, and are given up."""
        self._end(self._first_tokens(self._send(number, 1, 8000, **_RESUMABLE)))


def abort(server: FaultyServer, count: int) -> None:
    """So many requests, a quarter in each state; returns when the server has nothing of them any more."""
    aborting = _Aborting(server)
    actions: list[Callable[[int], None]] = [aborting.queued, aborting.prefill, aborting.decode, aborting.parked]
    for state, action in zip(STATES, actions, strict=True):
        left = count // len(STATES)
        while left:
            action(min(BATCH, left))
            left -= min(BATCH, left)
        progress(f"{count // len(STATES)} aborted requests: {state}")
    deadline = time.monotonic() + PATIENCE
    while server.sample().counters["kv_blocks_used"] and time.monotonic() < deadline:
        time.sleep(0.01)


def measure(model: str, count: int) -> dict[str, Any]:
    """What a server of its own holds before and after `count` aborts."""
    server = FaultyServer(
        model, "--max-num-seqs", str(BATCH), "--max-num-batched-tokens", "32", "--resume-timeout", str(_GRACE)
    )
    try:
        abort(server, max(count // 10, min(count, _WARM), 4 * BATCH))
        before = server.held()
        abort(server, count)
        after = server.held()
    finally:
        server.stop()
    return {"model": model, "aborts": count, "before": before._asdict(), "after": after._asdict()}


def is_clean(result: dict[str, Any]) -> bool:
    """Whether the server has given back all that can be counted."""
    return all(result["before"][name] == result["after"][name] for name in ("rings", "blocks", "fds"))


def report_of(results: list[dict[str, Any]]) -> str:
    """A table with a row per model and moment."""
    rows = [
        [str(result["model"]), str(result["aborts"]), moment, *(str(result[moment][name]) for name in Held._fields)]
        for result in results
        for moment in ("before", "after")
    ]
    names = ["rings", "KV blocks", "fds", "server kB", "engine kB"]
    return table(["model", "aborted requests", "moment", *names], rows)


def add_option(parser: argparse.ArgumentParser) -> None:
    """How many requests are aborted."""
    parser.add_argument("--aborts", type=int, default=10000, help="aborted requests (default %(default)s)")


def main() -> None:
    """One model."""
    parser = argument_parser(__doc__, "aborts.{json,md}")
    add_option(parser)
    parser.add_argument("--model", default="synthetic", help="default %(default)s")
    options = parser.parse_args()
    result = measure(options.model, options.aborts)
    finish(options, "aborts", "What aborted requests leave", report_of([result]), {"benchmark": "aborts", **result})
    sys.exit(0 if is_clean(result) else 1)


if __name__ == "__main__":
    main()
