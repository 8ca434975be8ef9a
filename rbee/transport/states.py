"""What the engine does, as its line in the arena says it.

Owns the numbers. The core only carries them.
"""

from __future__ import annotations

from enum import IntEnum


class EngineState(IntEnum):
    """The argument of `Producer.beat`."""

    STARTING = 0
    LOADING = 1
    IDLE = 2
    STEPPING = 3
