// The doorbell: one word from which the engine sees if it must wake the server, and the server if it may sleep.
//
// The word is `sequence << 1 | ARMED`. The engine replaces it at the end of every step; the server sets ARMED when it
// has drained everything that it saw. Both use read-modify-write on the same word, so all of these are totally ordered:
// either the engine's exchange comes before the server's arm, which then fails (drain again), or after it, and then the
// engine sees ARMED and writes the eventfd. There is no third case, and so no lost wakeup and no fence.

#pragma once

#include <cerrno>
#include <cstring>

#include "rbee/layout.h"

namespace rbee {

constexpr std::uint64_t kArmed = 1;

/// Engine: announces a published step. True if the server sleeps and must be woken with wake().
inline bool ring_doorbell(DoorbellLine& line, std::uint64_t sequence) {
    // Release pairs with the acquire in observe_doorbell(): who sees this step's number sees its ready bits. Nothing
    // is read from the server on the strength of ARMED, so no acquire.
    return (line.word.exchange(sequence << 1, std::memory_order_release) & kArmed) != 0;
}

/// Server: the state of the doorbell, to be taken before looking at the ready bits.
inline std::uint64_t observe_doorbell(const DoorbellLine& line) {
    // Acquire pairs with the release in ring_doorbell().
    return line.word.load(std::memory_order_acquire);
}

/// Server: asks to be woken by the next step. False if a step came after `seen`: drain again.
/// `seen` may already be armed (a drain that no step caused); then this only checks that nothing has come since.
inline bool arm_doorbell(DoorbellLine& line, std::uint64_t seen) {
    // Relaxed on success: the engine reads nothing on the strength of ARMED, and the drain before this cannot sink
    // below it because its last loads of shared words were acquires. Relaxed on failure: the next drain observes anew.
    return line.word.compare_exchange_strong(seen, seen | kArmed, std::memory_order_relaxed, std::memory_order_relaxed);
}

/// Server: true if a step came after `seen`.
inline bool rung_since(const DoorbellLine& line, std::uint64_t seen) {
    // Relaxed: only a reason to drain, which observes anew.
    return (line.word.load(std::memory_order_relaxed) ^ seen) > kArmed;
}

/// Throws unless `fd` is open and non-blocking, because neither process may ever wait in the doorbell.
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
    // EAGAIN means that the counter is at its limit, hence readable already.
    if (add_to_eventfd(fd) == -1 && errno != EAGAIN) {
        throw TransportError("The doorbell's file descriptor " + std::to_string(fd) +
                             " cannot be written: " + std::strerror(errno) + ".");
    }
}

/// Server: makes the eventfd unreadable again.
inline void silence(int fd) {
    // EAGAIN means that the engine has not rung: a drain of the server's own accord.
    if (take_eventfd(fd) == -1 && errno != EAGAIN) {
        throw TransportError("The doorbell's file descriptor " + std::to_string(fd) +
                             " cannot be read: " + std::strerror(errno) + ".");
    }
}

}  // namespace rbee
