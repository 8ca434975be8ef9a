// The doorbell: one word that decides whether a step wakes the server and whether the server may sleep; the eventfd.
//
// The word is `sequence << 1 | ARMED`. The engine replaces it at the end of every step and wakes the server if it was
// ARMED; the server sets ARMED when it has drained everything that it saw. Owns both sides of the word. Why no wakeup
// is lost: docs/transport.md, "The order".

#pragma once

#include <cerrno>
#include <cstring>

#include "rbee/layout.h"

namespace rbee {

constexpr std::uint64_t kArmed = 1;

/// Engine: publishes a step's number. True if the server sleeps and must be woken with wake().
inline bool ring_doorbell(DoorbellLine& line, std::uint64_t sequence) {
    // Release pairs with the acquire in observe_doorbell(). No acquire: no load depends on ARMED.
    return (line.word.exchange(sequence << 1, std::memory_order_release) & kArmed) != 0;
}

/// Server: loads the doorbell; before take_ready().
inline std::uint64_t observe_doorbell(const DoorbellLine& line) {
    // Acquire pairs with the release in ring_doorbell().
    return line.word.load(std::memory_order_acquire);
}

/// Server: arms the doorbell, so that the next step wakes it. False if a step came after `seen`: drain again.
/// `seen` may already be armed (a drain that no step caused); then this only compares.
inline bool arm_doorbell(DoorbellLine& line, std::uint64_t seen) {
    // Relaxed, no pair: the engine's loads do not depend on ARMED. After a failure the next drain loads the word again.
    return line.word.compare_exchange_strong(seen, seen | kArmed, std::memory_order_relaxed, std::memory_order_relaxed);
}

/// Server: whether a step came after `seen`.
inline bool rung_since(const DoorbellLine& line, std::uint64_t seen) {
    // Relaxed, no pair: the drain that follows loads the word again.
    return (line.word.load(std::memory_order_relaxed) ^ seen) > kArmed;
}

/// Throws unless `fd` is open and non-blocking: neither process may block on the doorbell.
inline void check_eventfd(int fd) {
    const int flags = descriptor_flags(fd);
    if (flags == -1) {
        throw TransportError("The doorbell's file descriptor " + std::to_string(fd) +
                             " cannot be used: " + std::strerror(errno) + ". Pass it to the engine with pass_fds.");
    }
    if ((flags & O_NONBLOCK) == 0) {
        throw TransportError("The doorbell's file descriptor " + std::to_string(fd) +
                             " is blocking; create it with create_doorbell().");
    }
}

/// Engine: makes the eventfd readable.
inline void wake(int fd) {
    // EAGAIN: the counter is at its limit, hence readable already.
    if (add_to_eventfd(fd) == -1 && errno != EAGAIN) {
        throw TransportError("The doorbell's file descriptor " + std::to_string(fd) +
                             " cannot be written: " + std::strerror(errno) + ".");
    }
}

/// Server: makes the eventfd unreadable again.
inline void silence(int fd) {
    // EAGAIN: the engine has not written it; no step caused this drain.
    if (take_eventfd(fd) == -1 && errno != EAGAIN) {
        throw TransportError("The doorbell's file descriptor " + std::to_string(fd) +
                             " cannot be read: " + std::strerror(errno) + ".");
    }
}

}  // namespace rbee
