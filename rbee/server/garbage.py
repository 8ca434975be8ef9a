"""When Python's collector looks at all objects of the server process: while no request is open.

Owns the collector's thresholds. A full collection takes up to 1 us for each object, and nothing else runs meanwhile:
512 streams and the connections of an attack made it 33 ms, and it found nothing. What requests and connections leave is
freed by its last reference (tests/server/http/test_acceptor.py looks at that); the two younger generations are
collected as ever. Does not know what a request is.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_SELDOM = 1000  # collections of the middle generation, some 7 million objects, that force a full one under any load


@contextlib.contextmanager
def collected_when_idle(is_idle: Callable[[], bool], period: float = 1.0) -> Iterator[None]:
    """Within the block full collections wait until `is_idle`, which is looked at every `period` seconds.

    What is alive at its begin stays alive until its end: no collection scans it.
    """
    before = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(before[0], before[1], _SELDOM)
    task = asyncio.create_task(_collect(is_idle, period))
    try:
        yield
    finally:
        task.cancel()
        gc.set_threshold(*before)
        gc.unfreeze()


async def _collect(is_idle: Callable[[], bool], period: float) -> None:
    while True:
        await asyncio.sleep(period)
        if gc.get_count()[2] and is_idle():  # the middle generation has been collected since
            gc.collect()
