"""Numbers for the states of engine and server; the native core does not interpret them."""

from __future__ import annotations

from enum import IntEnum


class _State(IntEnum):
    @property
    def label(self) -> str:
        return self.name.lower()


class EngineState(_State):
    """What `Producer.beat` writes; STARTING in a new arena."""

    STARTING = 0
    LOADING = 1
    IDLE = 2
    STEPPING = 3


class ServerState(_State):
    """What `Consumer.beat` writes. Only READY accepts requests. DEAD: the engine process has ended."""

    STARTING = 0
    LOADING = 1
    READY = 2
    DRAINING = 3
    DEAD = 4
