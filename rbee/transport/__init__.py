"""How sampled tokens get from the engine process to the server process: through shared memory, with one doorbell.

Owns the arena (one shared-memory segment per start of the engine), its two sides, and the framing of the control
socket. Knows nothing of HTTP, models or scheduling. The work is done by a small C++ core; why no wakeup is lost and no
token is dropped is argued in `docs/transport.md`, and every offset is pinned in `native/include/rbee/layout.h`.

The memory map, with N rings of 2^k records; every line of the list starts on a 128-byte line of its own:

    header        magic, abi_version, record size, epoch, server pid, sizes, offsets    immutable after creation
    doorbell      u64 = sequence << 1 | ARMED                                           both, read-modify-write only
    wait word     u32: the engine sleeps although rings are open                        both, read-modify-write only
    engine line   heartbeat, state, pid, counters, progress                             engine writes
    server lines  heartbeat, state, counters                                            server writes
    histograms    u64 counts of durations by bucket: steps | everything else            engine | server writes
    tails[N]      u32: records ever written to each ring                                engine writes
    generations[N]  u32: whose ring it is                                               engine writes
    finish[N]     u64 = generation << 32 | finish                                       engine writes
    heads[N]      u32: records ever read from each ring                                 server writes
    cancel[N]     u32: the generation to end                                            server writes
    ready[N/64]   u64 bitmap: rings with something new                                  both, read-modify-write only
    records[N][2^k]  {u32 token_id, f32 logprob, u64 commit_ns}, a spare line each      engine writes

The streams of ordinary clients need no Python per token: an `Outlet` attached to a ring has `drain` render its tokens
as frames of a `FrameTemplate` and send them to the client's socket itself.

A request's ring is assigned by the server (`Consumer.assign`), named with a generation in the Submit record, opened by
the engine (`Producer.open`), filled step by step (`Producer.commit`), emptied by `Consumer.drain`, and free again when
its finish has been drained.
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
