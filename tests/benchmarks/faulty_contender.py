"""Measures a contender that makes a mistake: `python faulty_contender.py repeat|swap`, with benchmarks/ on PYTHONPATH.

`repeat` gives stream 0 its token twice and stream 1 none, `swap` gives them each other's; both only in the third step.
"""

from __future__ import annotations

import itertools
import os
import sys
from typing import TYPE_CHECKING

from transport_peers import Contender
from transport_run import Plan, measure

if TYPE_CHECKING:
    import asyncio
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray
    from transport_peers import Inbox


class _Faulty(Contender):
    """A pipe with a consumer that puts tokens into the wrong stream."""

    name = "faulty"
    fault = ""

    def __init__(self, streams: int, folder: Path) -> None:
        super().__init__(streams, folder)
        self.steps = os.pipe()

    def open_producer(self) -> None:
        pass

    def publish(self, committed_ns: int, tokens: NDArray[np.uint32]) -> int:
        os.write(self.steps[1], committed_ns.to_bytes(8, "little") + tokens.tobytes())
        return committed_ns

    def open_consumer(self, loop: asyncio.AbstractEventLoop, inbox: Inbox) -> None:
        steps = itertools.count()

        def on_step() -> None:
            message = memoryview(os.read(self.steps[0], 8 + 4 * self.streams))
            streams = list(range(self.streams))
            if next(steps) == 2:
                streams[:2] = {"repeat": [0, 0], "swap": [1, 0]}[self.fault]
            for stream, token in zip(streams, message[8:].cast("I").tolist(), strict=True):
                inbox.tokens[stream].append(token)
            inbox.landed(self.streams, int.from_bytes(message[:8], "little"))

        loop.add_reader(self.steps[0], on_step)


if __name__ == "__main__":
    _Faulty.fault = sys.argv[1]
    measure(_Faulty, Plan(streams=2, warmup=1, steps=5, step_ns=1_000_000))
