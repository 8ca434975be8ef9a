"""The numbers for what the engine and the server do. The core only carries them."""

from __future__ import annotations

from enum import IntEnum


class EngineState(IntEnum):
    """What `Producer.beat` writes."""

    STARTING = 0
    LOADING = 1
    IDLE = 2
    STEPPING = 3


class ServerState(IntEnum):
    """What `Consumer.beat` writes: the server as its engine allows it."""

    STARTING = 0
    LOADING = 1
    READY = 2
    DRAINING = 3
    DEAD = 4
