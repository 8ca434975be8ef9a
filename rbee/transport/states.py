"""The states that the two processes write into the arena with their heartbeats.

Owns the codes and their names, for the writers and for observers. Does not know when a process changes its state.
"""

from __future__ import annotations

from enum import IntEnum


class _State(IntEnum):
    @property
    def label(self) -> str:
        """The name that users see."""
        return self.name.lower()


class EngineState(_State):
    """What the engine process does. A fresh arena has STARTING."""

    STARTING = 0
    LOADING = 1
    IDLE = 2
    STEPPING = 3


class ServerState(_State):
    """Whether the server takes requests, and why not. DEAD: the engine process has ended."""

    STARTING = 0
    LOADING = 1
    READY = 2
    DRAINING = 3
    DEAD = 4
