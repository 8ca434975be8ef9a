"""The numbers for what the engine does. The core only carries them."""

from __future__ import annotations

from enum import IntEnum


class EngineState(IntEnum):
    """What `Producer.beat` writes."""

    STARTING = 0
    LOADING = 1
    IDLE = 2
    STEPPING = 3
