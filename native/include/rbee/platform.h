// What the core takes from the machine: shared words, shared plain memory, the eventfd, the clock, counters.
//
// The model check (tests/model) compiles the same core against a platform of its own, in which every one of these is a
// step of an exhaustive search. So nothing else in the core may touch shared memory or call the system.

#pragma once

#include <atomic>
#include <cstdint>

#include <fcntl.h>
#include <sched.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "rbee/crash_points.h"

namespace rbee {

/// A word that both processes access.
template <typename T>
using Word = std::atomic<T>;

/// Copies plain shared memory out; the caller ensures that no process writes it now.
template <typename T>
T load_plain(const T& from) {
    return from;
}

/// Writes plain shared memory; the caller ensures that no process reads it now.
template <typename T>
void store_plain(T& to, const T& value) {
    to = value;
}

/// Adds to a counter that only the calling process writes, hence without a read-modify-write. Relaxed, no pair: no
/// reader concludes anything about another word from it.
inline void count(Word<std::uint64_t>& counter, std::uint64_t by = 1) {
    counter.store(counter.load(std::memory_order_relaxed) + by, std::memory_order_relaxed);
    RBEE_CRASH_POINT(counted);
}

/// Sets a gauge that only the calling process writes. Relaxed, no pair, as count().
template <typename T>
void set_gauge(Word<T>& gauge, T value) {
    gauge.store(value, std::memory_order_relaxed);
    RBEE_CRASH_POINT(gauge_set);
}

/// CLOCK_MONOTONIC in nanoseconds, the one clock of commit times and heartbeats; Python's time.monotonic_ns().
inline std::uint64_t monotonic_ns() {
    timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return static_cast<std::uint64_t>(now.tv_sec) * 1'000'000'000u + static_cast<std::uint64_t>(now.tv_nsec);
}

inline std::uint32_t process_id() { return static_cast<std::uint32_t>(getpid()); }

/// write(2) of 1 to an eventfd; -1 with errno as the system call.
inline ssize_t add_to_eventfd(int fd) {
    const std::uint64_t one = 1;
    return write(fd, &one, sizeof one);
}

/// read(2) of an eventfd, which empties it; -1 with errno as the system call.
inline ssize_t take_eventfd(int fd) {
    std::uint64_t rings;
    return read(fd, &rings, sizeof rings);
}

/// The descriptor's flags, or -1 with errno.
inline int descriptor_flags(int fd) { return fcntl(fd, F_GETFL); }

/// Maps all pages of a mapping now and, where possible, as large ones: else the first step that reaches a new page of
/// every ring would wait for as many page faults. Kernels before 5.14 refuse, and that step waits.
inline void map_all_pages(void* base, std::size_t bytes) {
    constexpr int populate_for_writing = 23;  // MADV_POPULATE_WRITE, which older headers do not have
    madvise(base, bytes, MADV_HUGEPAGE);
    madvise(base, bytes, populate_for_writing);
}

/// Yields this core to a process that was just woken, if the kernel has put it here.
inline void give_way() { sched_yield(); }

/// A spin-wait hint for the processor.
inline void relax_processor() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

}  // namespace rbee
