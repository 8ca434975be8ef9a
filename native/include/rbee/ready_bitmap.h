// The ready bitmap: one bit per ring, set by the engine when it put something there, taken by the server.
//
// A bit is only ever a hint to look: it may be seen before the step's doorbell, and a ring may turn out to be empty.
// The side that takes a bit must see the tail and the finish word that were written before it was set,
// because the bit is then gone.

#pragma once

#include "rbee/layout.h"

namespace rbee {

/// Engine: marks up to 64 rings with one operation.
inline void mark_ready(Word<std::uint64_t>& word, std::uint64_t bits) {
    // Release pairs with the acquire in take_ready(): the bit's taker sees this step's tails and finish words.
    word.fetch_or(bits, std::memory_order_release);
}

/// Server: takes all bits of a word.
inline std::uint64_t take_ready(Word<std::uint64_t>& word) {
    // Acquire pairs with the release in mark_ready(). Nothing of the server's is published with it.
    return word.exchange(0, std::memory_order_acquire);
}

}  // namespace rbee
