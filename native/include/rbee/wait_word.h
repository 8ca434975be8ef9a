// The wait word: set while the engine sleeps although rings are open, until a cancel or space in a full ring.
//
// Owns both sides of the word. Why no sleeping engine is forgotten: docs/transport.md, "The order".

#pragma once

#include "rbee/layout.h"

namespace rbee {

/// Engine: `waiting` before its last check of cancel words and heads, not `waiting` when it steps again.
inline void set_waiting(WaitLine& line, bool waiting) {
    // Acquire pairs with the release in take_waiting(). An exchange also to clear: a store would end the release
    // sequence of an earlier take. No release: no load of the server depends on this word.
    line.engine_waiting.exchange(waiting ? 1u : 0u, std::memory_order_acquire);
}

/// Server, after it wrote a cancel word or a head: true if the engine must be sent Wake.
inline bool take_waiting(WaitLine& line) {
    // Release pairs with the acquire in set_waiting(). No acquire: no load depends on the result.
    return line.engine_waiting.exchange(0, std::memory_order_release) != 0;
}

}  // namespace rbee
