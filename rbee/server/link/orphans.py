"""Sequences whose client has lost its connection and may come back: the engine holds them, and they make room first.

Owns their order and why they are given up. Does not know rings' generations, nor how a client comes back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

from rbee.messages import Hold, Release
from rbee.server.errors import Refusal, RefusalKind

if TYPE_CHECKING:
    from rbee.messages import ToEngine

Helps: TypeAlias = Callable[[int], bool]  # whether the end of this ring's sequence makes room


class Orphans:
    """The rings of such sequences. `end` ends the sequence of a ring with a refusal, and forgets the ring here."""

    def __init__(self, send: Callable[[ToEngine], None], end: Callable[[int, Refusal], None]) -> None:
        self._send = send
        self._end = end
        self._rings: dict[int, None] = {}  # oldest first
        self._ending: set[int] = set()  # given up for their rings, which are not free yet
        self._freed = asyncio.Event()
        self._wanted = True

    def add(self, ring: int) -> None:
        """The sequence of `ring` has no reader; its engine stops computing it."""
        if not self._wanted:
            self._end(ring, _stopping())
        elif ring not in self._rings:
            self._rings[ring] = None
            self._send(Hold(ring=ring))

    def adopt(self, ring: int) -> None:
        """It has a reader again. Harmless if it had one."""
        if ring in self._rings:
            del self._rings[ring]
            self._send(Release(ring=ring))

    def forget(self, ring: int) -> None:
        """Its sequence has ended."""
        self._rings.pop(ring, None)

    def on_free(self, ring: int) -> None:
        """Its ring is free again."""
        if ring in self._ending:
            self._ending.remove(ring)
            self._wake()

    def on_engine_death(self) -> None:
        """No ring becomes free any more."""
        self._ending.clear()
        self._wake()

    async def make_room(self, num_rings: int, lacking: Callable[[], Helps | None]) -> None:
        """Give up orphans, oldest first, until there is room (`lacking` is None) or no orphan is left that helps.

        A ring is free one engine step after that. Each caller gives up as many as it needs, so that callers at the same
        time take no more than they need together.
        """
        while (helps := lacking()) is not None:
            oldest = next(filter(helps, self._rings), None)
            if num_rings and oldest is not None:
                num_rings -= 1
                self._give_up(oldest)
            elif any(map(helps, self._ending)):
                await self._freed.wait()
            elif oldest is not None:  # others have taken what was given up here
                num_rings = 1
            else:
                return

    def end_all(self) -> None:
        """End them, and from now on each at once: a server that stops waits for nobody who may not come."""
        self._wanted = False
        for ring in tuple(self._rings):
            self._end(ring, _stopping())

    def _give_up(self, ring: int) -> None:
        self._ending.add(ring)
        self._end(
            ring,
            Refusal(
                RefusalKind.OVERLOADED,
                "The stream was without a connection, and another request needed its place; send the request anew.",
                code="stream_given_up",
            ),
        )

    def _wake(self) -> None:
        """Let all that wait look again."""
        self._freed.set()
        self._freed.clear()


def _stopping() -> Refusal:
    return Refusal(
        RefusalKind.UNAVAILABLE,
        "The server is shutting down; a stream without a connection is not finished.",
        code="server_shutdown",
    )
