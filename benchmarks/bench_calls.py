"""What each call of the transport costs alone, in one process, with everything in the cache.

    python benchmarks/bench_calls.py --save

* `commit(n)` publishes a token for each of n rings, without the eventfd write: the server is awake.
* `drain(n)` returns n tokens of n rings to Python.
* `drain(n) to sockets` renders and sends them. Its floor is a bare send(2) of the same bytes, called from Python.
* The baseline of a call is a write to an eventfd and a read of it.

Microseconds per call, median and p99 over `--calls`, on CLOCK_MONOTONIC. The clock's own cost is printed, and taken off
the median once.
"""

from __future__ import annotations

import contextlib
import functools
import os
import socket
import time
from typing import TYPE_CHECKING, Any

import numpy as np
from delivery_floor import summary_us
from program import argument_parser, finish
from saving import table

from rbee.server.protocols.openai.frames import Chunks
from rbee.server.protocols.openai.schemas import StreamOptions
from rbee.transport import Arena, Consumer, Outlet, Producer, Vocabulary, create_doorbell

if TYPE_CHECKING:
    from collections.abc import Callable

_TARGETS = {"commit(1)": 0.3, "commit(256)": 5.0, "drain(256)": 20.0}


class Pair:
    """Both sides of an arena, with all rings open."""

    def __init__(self, stack: contextlib.ExitStack, rings: int) -> None:
        arena = Arena.create(num_rings=max(64, rings), ring_capacity=1024, epoch=1)
        stack.callback(arena.close)
        stack.callback(arena.unlink)
        doorbell = create_doorbell()
        stack.callback(os.close, doorbell)
        self.consumer, self.producer = Consumer(arena, doorbell), Producer(arena, doorbell)
        stack.callback(self.consumer.close)
        stack.callback(self.producer.close)
        self.rings = []
        for _ in range(rings):
            assigned = self.consumer.assign()
            assert assigned is not None
            self.producer.open(*assigned)
            self.rings.append(assigned[0])
        ids, tokens = np.array(self.rings, np.uint32), np.full(rings, ord("x"), np.uint32)
        # A token for each ring; the call itself, without a Python function around it.
        self.commit = functools.partial(self.producer.commit, ids, tokens, np.zeros(rings, np.float32))


def time_calls(calls: int, call: Callable[[], object], between: Callable[[], object]) -> dict[str, float]:
    """Time `call`, and let `between` undo it; after a tenth of the calls to warm up."""
    taken = []
    for number in range(calls + calls // 10):
        start = time.monotonic_ns()
        call()
        end = time.monotonic_ns()
        between()
        if number >= calls // 10:
            taken.append(end - start)
    return summary_us(taken)


def measure_transport(calls: int, rings: int) -> dict[str, dict[str, float]]:
    """Commit and drain of this many rings."""
    with contextlib.ExitStack() as stack:
        pair = Pair(stack, rings)
        pair.commit()  # an arena is armed from the start: this one writes the eventfd, none of the following does
        pair.consumer.drain(polling=True)
        figures = {f"commit({rings})": time_calls(calls, pair.commit, lambda: pair.consumer.drain(polling=True))}
        pair.commit()
        drain = functools.partial(pair.consumer.drain, polling=True)
        figures[f"drain({rings})"] = time_calls(calls, drain, pair.commit)
        return figures


def measure_sockets(calls: int, rings: int) -> dict[str, dict[str, float]]:
    """A drain that sends a frame for each ring, and bare sends of as many bytes."""
    with contextlib.ExitStack() as stack:
        pair = Pair(stack, rings)
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=1024))
        readers, senders = [], []
        for _ in range(rings):
            readers.append(stack.enter_context(socket.create_connection(listener.getsockname())))
            senders.append(stack.enter_context(listener.accept()[0]))
            senders[-1].setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        vocabulary = Vocabulary([bytes([byte]) for byte in range(256)])
        chunks = Chunks(
            kind="chat.completion.chunk",
            answer_id="chatcmpl-" + "0" * 32,
            created=0,
            model="m",
            chat=True,
            options=StreamOptions(),
            prompt_tokens=[1],
        )
        for ring, sender in zip(pair.rings, senders, strict=True):
            outlet = Outlet(
                sender.fileno(), vocabulary, chunks.template(), strip=False, prompt_tokens=1, stop_token_ids=[]
            )
            pair.consumer.attach(ring, outlet)
        pair.commit()
        pair.consumer.drain()
        size = len(readers[0].recv(65536))
        for reader in readers[1:]:
            reader.recv(65536)

        def read_and_commit() -> None:
            for reader in readers:
                reader.recv(65536)
            pair.commit()

        pair.commit()
        figures = {f"drain({rings}) to sockets": time_calls(calls, pair.consumer.drain, read_and_commit)}
        frame = b"x" * size

        def send_all() -> None:
            for sender in senders:
                sender.send(frame)

        def read_all() -> None:
            for reader in readers:
                reader.recv(65536)

        figures[f"floor: {rings} bare sends of {size} bytes"] = time_calls(calls, send_all, read_all)
        return figures


def main() -> None:
    """Time all calls."""
    parser = argument_parser(__doc__, "calls.{json,md}")
    parser.add_argument("--calls", type=int, default=20_000, help="of each kind (default %(default)s)")
    options = parser.parse_args()
    doorbell = create_doorbell()

    def there_and_back() -> None:
        os.eventfd_write(doorbell, 1)
        os.eventfd_read(doorbell)

    clock = time_calls(options.calls, lambda: None, lambda: None)["p50"]
    figures: dict[str, dict[str, float]] = {
        "baseline: eventfd write and read": time_calls(options.calls, there_and_back, lambda: None)
    }
    os.close(doorbell)
    for rings in (1, 16, 256):
        figures |= measure_transport(options.calls, rings)
    figures |= measure_sockets(max(200, options.calls // 20), 256)
    for figure in figures.values():
        figure["p50"] = round(figure["p50"] - clock, 3)
    rows = [
        [name, f"{figure['p50']:.2f}", f"{figure['p99']:.2f}", str(_TARGETS.get(name, ""))]
        for name, figure in figures.items()
    ]
    report = table(["call", "p50, us", "p99, us", "target for p50"], rows)
    report += f"\n\nThe clock's own {clock:.2f} us are taken off the p50."
    result: dict[str, Any] = {"benchmark": "calls", "calls": options.calls, "us": figures}
    finish(options, "calls", "The transport's calls", report, result)


if __name__ == "__main__":
    main()
