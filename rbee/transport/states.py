"""The numbers for what the engine and the server do. The core only carries them."""

from __future__ import annotations

from enum import IntEnum


class _State(IntEnum):
    @property
    def label(self) -> str:
        """The name that users see."""
        return self.name.lower()


class EngineState(_State):
    """What `Producer.beat` writes. A fresh arena has STARTING."""

    STARTING = 0
    LOADING = 1
    IDLE = 2
    STEPPING = 3


class ServerState(_State):
    """What `Consumer.beat` writes: whether requests are taken, and why not. DEAD: the engine process has ended."""

    STARTING = 0
    LOADING = 1
    READY = 2
    DRAINING = 3
    DEAD = 4
