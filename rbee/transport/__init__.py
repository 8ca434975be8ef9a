"""How sampled tokens get from the engine process to the server process: through shared memory, with one doorbell.

Owns the arena (one shared-memory segment per start of the engine), its two sides, and the framing of the control
socket. Knows nothing of HTTP, models or scheduling. `docs/transport.md` has the memory map and argues why no wakeup is
lost and no token dropped.

A request's ring is assigned by the server (`Consumer.assign`), named with a generation in the Submit record, opened by
the engine (`Producer.open`), filled step by step (`Producer.commit`), emptied by `Consumer.drain`, and free again when
its finish has been drained. Most streams cost no Python per token: `drain` writes the frames of an attached `Outlet`
to the client's socket.
"""

from __future__ import annotations

from rbee.transport._native import Consumer, Drained, Outlet, Producer, Progress, Slot, Vocabulary
from rbee.transport.arena import Arena, create_doorbell
from rbee.transport.frame_template import FrameTemplate, LastFrames
from rbee.transport.observer import COUNTS, GAUGES, FoundServer, Histogram, Observer, Sample, find_servers
from rbee.transport.states import EngineState, ServerState

__all__ = [
    "COUNTS",
    "GAUGES",
    "Arena",
    "Consumer",
    "Drained",
    "EngineState",
    "FoundServer",
    "FrameTemplate",
    "Histogram",
    "LastFrames",
    "Observer",
    "Outlet",
    "Producer",
    "Progress",
    "Sample",
    "ServerState",
    "Slot",
    "Vocabulary",
    "create_doorbell",
    "find_servers",
]
