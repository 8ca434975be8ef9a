// One token ring: a single-producer single-consumer queue of records with free-running indices.
//
// tail counts the records ever written, head those ever read, both modulo 2^32; a record lies at its index masked with
// (capacity - 1). The indices run on when a ring goes to its next request, so an empty ring is one with head == tail,
// whatever they are. The finish word ends one generation of a ring: generation << 32 | FinishCode.

#pragma once

#include "rbee/layout.h"

namespace rbee {

/// Engine: publishes all records below `tail`.
inline void publish_tail(Word<std::uint32_t>& word, std::uint32_t tail) {
    // Release pairs with the acquire in load_tail(): the records are complete before the index includes them.
    word.store(tail, std::memory_order_release);
    RBEE_CRASH_POINT(tail_published);
}

/// Server: how far records may be read.
inline std::uint32_t load_tail(const Word<std::uint32_t>& word) {
    // Acquire pairs with the release in publish_tail().
    return word.load(std::memory_order_acquire);
}

/// Server: gives the space of all records below `head` back.
inline void publish_head(Word<std::uint32_t>& word, std::uint32_t head) {
    // Release pairs with the acquire in load_head(): the records were copied out before they may be overwritten.
    word.store(head, std::memory_order_release);
    RBEE_CRASH_POINT(head_published);
}

/// Engine: how far records have been read.
inline std::uint32_t load_head(const Word<std::uint32_t>& word) {
    // Acquire pairs with the release in publish_head().
    return word.load(std::memory_order_acquire);
}

/// How a request ended: a reason (not 0) in the low byte, above it a number from the engine. 0 is no finish.
using FinishCode = std::uint32_t;

constexpr std::uint8_t reason_of(FinishCode finish) { return static_cast<std::uint8_t>(finish & 0xff); }

constexpr std::uint32_t detail_of(FinishCode finish) { return finish >> 8; }

/// Engine: ends `generation`, after its last tail has been published.
inline void publish_finish(Word<std::uint64_t>& word, std::uint32_t generation, FinishCode finish) {
    // Release pairs with the acquire in load_finish(): with the finish word, the last tail is visible.
    word.store(std::uint64_t{generation} << 32 | finish, std::memory_order_release);
    RBEE_CRASH_POINT(finish_published);
}

/// Server, before load_tail(): how `generation` ended, or 0 if it has not.
inline FinishCode load_finish(const Word<std::uint64_t>& word, std::uint32_t generation) {
    // Acquire pairs with the release in publish_finish().
    const std::uint64_t finish = word.load(std::memory_order_acquire);
    return finish >> 32 == generation ? static_cast<FinishCode>(finish) : FinishCode{0};
}

/// How many records lie between the indices; TransportError if no ring of this capacity can be in that state, so that a
/// corrupted index can never lead either side outside its ring.
inline std::uint32_t records_between(std::uint32_t head, std::uint32_t tail, std::uint32_t capacity,
                                     std::uint32_t ring) {
    const std::uint32_t records = tail - head;
    if (records > capacity) {
        throw TransportError("Corrupt ring " + std::to_string(ring) + ": head " + std::to_string(head) + " and tail " +
                             std::to_string(tail) + " are further apart than its " + std::to_string(capacity) +
                             " records; the engine must be replaced.");
    }
    return records;
}

}  // namespace rbee
