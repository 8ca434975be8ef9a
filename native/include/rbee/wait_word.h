// The way back: an engine that sleeps although rings are open waits for a cancel or for space in a full ring.
//
// The server sends it a Wake record on the control channel, but only if the engine has announced that it waits. As with
// the doorbell both sides read-modify-write one word. The engine's set is ordered against the server's take: if the
// take comes first, the engine's set reads from it and the engine's next look at cancel words and heads sees what the
// server wrote before; if it comes second, it finds the word set and the server sends Wake.

#pragma once

#include "rbee/layout.h"

namespace rbee {

/// Engine: `waiting` before it looks a last time and sleeps, not `waiting` once it steps again.
inline void set_waiting(WaitLine& line, bool waiting) {
    // Acquire pairs with the release in take_waiting(). Release is not needed: the server reads nothing on the strength
    // of this word. An exchange and not a store even when clearing: a store would cut the chain of read-modify-writes
    // through which a later set_waiting() sees what the server wrote before its take.
    line.engine_waiting.exchange(waiting ? 1u : 0u, std::memory_order_acquire);
}

/// Server, after it wrote a cancel word or moved a head: true if the engine must be woken.
inline bool take_waiting(WaitLine& line) {
    // Release pairs with the acquire in set_waiting(); nothing is read on the strength of the answer.
    return line.engine_waiting.exchange(0, std::memory_order_release) != 0;
}

}  // namespace rbee
