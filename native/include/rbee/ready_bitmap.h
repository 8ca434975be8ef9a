// The ready bitmap: one bit per ring, set by the engine when it put something there, taken by the server.
//
// Owns both sides of its words. A bit is a hint: it may be visible before the step's doorbell, and its ring may be
// empty.

#pragma once

#include "rbee/layout.h"

namespace rbee {

/// Engine: marks up to 64 rings with one operation.
inline void mark_ready(Word<std::uint64_t>& word, std::uint64_t bits) {
    // Release pairs with the acquire in take_ready(): with the bit, this step's tails and finish words are visible.
    word.fetch_or(bits, std::memory_order_release);
    RBEE_CRASH_POINT(ready_marked);
}

/// Server: takes all bits of a word.
inline std::uint64_t take_ready(Word<std::uint64_t>& word) {
    // Acquire pairs with the release in mark_ready(). No release: this publishes nothing of the server.
    return word.exchange(0, std::memory_order_acquire);
}

}  // namespace rbee
