"""Shared memory with one doorbell, which carries sampled tokens from the engine process to the server process.

Owns the arena, its two sides and the framing of the control socket (docs/transport.md). Does not know HTTP or models.
"""

from __future__ import annotations

from rbee.transport._native import Consumer, Drained, EmojiHold, Outlet, Producer, Progress, Slot, TokenGaps, Vocabulary
from rbee.transport.arena import Arena, create_doorbell
from rbee.transport.frame_template import FrameTemplate, LastFrames
from rbee.transport.life_line import LifeLine
from rbee.transport.observer import (
    COUNTERS,
    COUNTS,
    GAUGES,
    HISTOGRAMS,
    FoundServer,
    Histogram,
    Observer,
    Sample,
    bucket_start_near,
    find_servers,
    read_sample,
)
from rbee.transport.states import EngineState, ServerState

__all__ = [
    "COUNTERS",
    "COUNTS",
    "GAUGES",
    "HISTOGRAMS",
    "Arena",
    "Consumer",
    "Drained",
    "EmojiHold",
    "EngineState",
    "FoundServer",
    "FrameTemplate",
    "Histogram",
    "LastFrames",
    "LifeLine",
    "Observer",
    "Outlet",
    "Producer",
    "Progress",
    "Sample",
    "ServerState",
    "Slot",
    "TokenGaps",
    "Vocabulary",
    "bucket_start_near",
    "create_doorbell",
    "find_servers",
    "read_sample",
]
