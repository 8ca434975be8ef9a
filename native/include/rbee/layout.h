// The arena: what lies where in the one shared-memory segment of an engine epoch.
//
// Owns the layout, its validation and the errors of the core. Knows nothing of Python, nor of who does what when: that
// is producer.h (engine process) and consumer.h (server process). Everything is grouped by writer, in 128-byte lines
// (two 64-byte cache lines, because x86 prefetches them in pairs), so that no line is ever written by both processes
// unless both must write the same word.

#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <new>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "rbee/histogram.h"
#include "rbee/platform.h"

namespace rbee {

/// The shared memory, or the doorbell, is not usable or not what this build expects.
struct TransportError : std::runtime_error {
    using std::runtime_error::runtime_error;
};

constexpr std::size_t kLine = 128;
constexpr std::uint64_t kMagic = 0x6d68735f65656272;  // "rbee_shm" as little-endian bytes
constexpr std::uint32_t kAbiVersion = 3;
constexpr std::uint32_t kMaxRings = 1u << 16;
constexpr std::uint32_t kMaxRingCapacity = 1u << 20;

// Words shared between processes must be plain memory without a hidden lock.
static_assert(Word<std::uint32_t>::is_always_lock_free && sizeof(Word<std::uint32_t>) == 4);
static_assert(Word<std::uint64_t>::is_always_lock_free && sizeof(Word<std::uint64_t>) == 8);

/// This bit of a record's token says that it is a note: it says something about tokens, but is no output.
constexpr std::uint32_t kNote = 1u << 31;

/// One sampled token, or a note. `commit_ns` is CLOCK_MONOTONIC at the commit of its step, `logprob` the natural
/// logarithm of the token's probability, NaN if nobody asked for it.
struct Record {
    std::uint32_t token_id;
    float logprob;
    std::uint64_t commit_ns;
};
static_assert(sizeof(Record) == 16 && std::is_trivially_copyable_v<Record>);
static_assert(offsetof(Record, logprob) == 4 && offsetof(Record, commit_ns) == 8);

/// Sizes and offsets (bytes from the start of the arena). A pure function of (num_rings, ring_capacity).
struct Geometry {
    std::uint32_t num_rings;
    std::uint32_t ring_capacity;
    std::uint64_t tails;
    std::uint64_t generations;
    std::uint64_t finish;
    std::uint64_t heads;
    std::uint64_t cancel;
    std::uint64_t ready;
    std::uint64_t records;
    std::uint64_t total_bytes;
};
static_assert(sizeof(Geometry) == 72);

/// Written by the server before anybody else can see the arena, and never again.
struct alignas(kLine) Header {
    std::uint64_t magic;
    std::uint32_t abi_version;
    std::uint32_t record_bytes;
    std::uint64_t epoch;
    std::uint32_t server_pid;
    std::uint32_t reserved;
    Geometry geometry;
};
static_assert(sizeof(Header) == 128 && std::is_trivially_copyable_v<Header>);
static_assert(offsetof(Header, magic) == 0 && offsetof(Header, abi_version) == 8);
static_assert(offsetof(Header, record_bytes) == 12 && offsetof(Header, epoch) == 16);
static_assert(offsetof(Header, server_pid) == 24 && offsetof(Header, geometry) == 32);

/// Sequence number of the last step << 1 | ARMED. Both processes read-modify-write it; see doorbell.h.
struct alignas(kLine) DoorbellLine {
    Word<std::uint64_t> word;
};

/// Non-zero while the engine is about to sleep, or sleeps, although rings are open. See wait_word.h.
struct alignas(kLine) WaitLine {
    Word<std::uint32_t> engine_waiting;
};

/// Only the engine writes here: what it counts, and after each step how things stand.
struct alignas(kLine) EngineLine {
    Word<std::uint64_t> heartbeat_ns;
    Word<std::uint32_t> state;
    Word<std::uint32_t> pid;
    Word<std::uint64_t> steps;
    Word<std::uint64_t> tokens;
    Word<std::uint64_t> wakes_written;
    Word<std::uint64_t> wakes_elided;
    Word<std::uint64_t> full_ring_pauses;
    Word<std::uint64_t> preemptions;
    Word<std::uint32_t> sequences_running;
    Word<std::uint32_t> sequences_waiting;
    Word<std::uint32_t> kv_blocks;
    Word<std::uint32_t> kv_blocks_used;
    Word<std::uint64_t> prompt_tokens;         // of requests that have begun to run
    Word<std::uint64_t> cached_prompt_tokens;  // of those, found in the prefix cache
};

/// Only the server writes here.
struct alignas(kLine) ServerLine {
    Word<std::uint64_t> heartbeat_ns;
    Word<std::uint32_t> state;
    Word<std::uint32_t> rings_in_use;
    Word<std::uint64_t> drains;
    Word<std::uint64_t> tokens_drained;  // notes included
    Word<std::uint64_t> finishes;
    Word<std::uint64_t> cancels;
    Word<std::uint64_t> engine_wakes;
    Word<std::uint64_t> stale_wakeups;
    Word<std::uint64_t> direct_tokens;    // rendered and sent by the native drain
    Word<std::uint64_t> direct_sends;     // system calls that took
    Word<std::uint64_t> blocked_sends;    // those that found a full socket
    Word<std::uint64_t> drain_ns;         // time in drains: everything up to the return to Python
    Word<std::uint64_t> render_ns;        // of that, detokenizing and framing
    Word<std::uint64_t> send_ns;          // of that, in send(2)
    Word<std::uint64_t> gc_pauses;        // collections of Python's garbage collector
    Word<std::uint64_t> gc_pause_ns;
};

/// What happens often is counted by how long it took.
struct alignas(kLine) Histograms {
    Histogram step;      // engine: one step, schedule to commit
    Histogram wakeup;    // server: commit of a step to the start of the drain that found it
    Histogram delivery;  // server: commit of a token to its bytes handed to the socket
    Histogram loop_lag;  // server: how late a timer of the event loop was
};

/// The part of the arena whose place does not depend on its size; the arrays of Geometry follow.
struct FixedPart {
    Header header;
    DoorbellLine doorbell;
    WaitLine wait;
    EngineLine engine;
    ServerLine server;
    Histograms histograms;
};
static_assert(std::is_standard_layout_v<FixedPart> && sizeof(FixedPart) == 5 * kLine + 4 * kBuckets * 8);
static_assert(offsetof(FixedPart, doorbell) == 1 * kLine && offsetof(FixedPart, wait) == 2 * kLine);
static_assert(offsetof(FixedPart, engine) == 3 * kLine && offsetof(FixedPart, server) == 4 * kLine);
static_assert(offsetof(FixedPart, histograms) == 5 * kLine);
static_assert(offsetof(EngineLine, state) == 8 && offsetof(EngineLine, pid) == 12 && offsetof(EngineLine, steps) == 16);
static_assert(offsetof(EngineLine, tokens) == 24 && offsetof(EngineLine, wakes_written) == 32);
static_assert(offsetof(EngineLine, wakes_elided) == 40 && offsetof(EngineLine, full_ring_pauses) == 48);
static_assert(offsetof(EngineLine, preemptions) == 56 && offsetof(EngineLine, sequences_running) == 64);
static_assert(offsetof(EngineLine, sequences_waiting) == 68 && offsetof(EngineLine, kv_blocks) == 72);
static_assert(offsetof(EngineLine, kv_blocks_used) == 76 && offsetof(EngineLine, prompt_tokens) == 80);
static_assert(offsetof(EngineLine, cached_prompt_tokens) == 88 && sizeof(EngineLine) == kLine);
static_assert(offsetof(ServerLine, state) == 8 && offsetof(ServerLine, rings_in_use) == 12);
static_assert(offsetof(ServerLine, drains) == 16 && offsetof(ServerLine, tokens_drained) == 24);
static_assert(offsetof(ServerLine, finishes) == 32 && offsetof(ServerLine, cancels) == 40);
static_assert(offsetof(ServerLine, engine_wakes) == 48 && offsetof(ServerLine, stale_wakeups) == 56);
static_assert(offsetof(ServerLine, direct_tokens) == 64 && offsetof(ServerLine, direct_sends) == 72);
static_assert(offsetof(ServerLine, blocked_sends) == 80 && offsetof(ServerLine, drain_ns) == 88);
static_assert(offsetof(ServerLine, render_ns) == 96 && offsetof(ServerLine, send_ns) == 104);
static_assert(offsetof(ServerLine, gc_pauses) == 112 && offsetof(ServerLine, gc_pause_ns) == 120);

/// Between two rings lies one unused line: with a power of two alone, the records that one step writes for all rings
/// would fall into the same few sets of every cache.
constexpr std::uint64_t ring_stride(std::uint32_t ring_capacity) {
    return std::uint64_t{ring_capacity} * sizeof(Record) + kLine;
}

/// Where everything goes. The arguments must be within the limits that `plan` checks; then nothing here can overflow.
constexpr Geometry lay_out(std::uint32_t num_rings, std::uint32_t ring_capacity) {
    const std::uint64_t rings = num_rings;
    const auto up_to_line = [](std::uint64_t offset) { return (offset + kLine - 1) / kLine * kLine; };
    Geometry g{};
    g.num_rings = num_rings;
    g.ring_capacity = ring_capacity;
    g.tails = sizeof(FixedPart);
    g.generations = g.tails + rings * 4;
    g.finish = g.generations + rings * 4;
    g.heads = g.finish + rings * 8;
    g.cancel = g.heads + rings * 4;
    g.ready = g.cancel + rings * 4;
    g.records = up_to_line(g.ready + rings / 8);
    g.total_bytes = g.records + rings * ring_stride(ring_capacity);
    return g;
}
static_assert(lay_out(64, 2).tails == sizeof(FixedPart) && lay_out(64, 2).generations == sizeof(FixedPart) + 256);
static_assert(lay_out(64, 2).finish == sizeof(FixedPart) + 512 && lay_out(64, 2).heads == sizeof(FixedPart) + 1024);
static_assert(lay_out(64, 2).cancel == sizeof(FixedPart) + 1280 && lay_out(64, 2).ready == sizeof(FixedPart) + 1536);
static_assert(lay_out(64, 2).records == sizeof(FixedPart) + 1664);
static_assert(lay_out(64, 2).total_bytes == sizeof(FixedPart) + 1664 + 64 * (2 * 16 + 128));
static_assert(lay_out(kMaxRings, kMaxRingCapacity).total_bytes > std::uint64_t{kMaxRings} * kMaxRingCapacity * 16);

/// The geometry of an arena with these sizes; std::invalid_argument if there can be no such arena.
inline Geometry plan(std::uint32_t num_rings, std::uint32_t ring_capacity) {
    if (num_rings == 0 || num_rings % 64 != 0 || num_rings > kMaxRings) {
        throw std::invalid_argument("num_rings is " + std::to_string(num_rings) +
                                    "; it must be a multiple of 64 between 64 and " + std::to_string(kMaxRings) + ".");
    }
    if (ring_capacity < 2 || (ring_capacity & (ring_capacity - 1)) != 0 || ring_capacity > kMaxRingCapacity) {
        throw std::invalid_argument("ring_capacity is " + std::to_string(ring_capacity) +
                                    "; it must be a power of two between 2 and " + std::to_string(kMaxRingCapacity) +
                                    ".");
    }
    return lay_out(num_rings, ring_capacity);
}

/// One process's view of the arena: typed pointers into the mapping, and the sizes in memory of our own, where the
/// other process cannot change them. Does not own the mapping.
struct Arena {
    Geometry geometry;
    std::uint64_t epoch;
    FixedPart* fixed;
    Word<std::uint32_t>* tails;
    Word<std::uint32_t>* generations;
    Word<std::uint64_t>* finish;
    Word<std::uint32_t>* heads;
    Word<std::uint32_t>* cancel;
    Word<std::uint64_t>* ready;
    Record* records;

    std::uint32_t ready_words() const { return geometry.num_rings / 64; }

    /// Where the records of one ring lie.
    Record* ring(std::uint32_t number) const {
        return reinterpret_cast<Record*>(reinterpret_cast<unsigned char*>(records) +
                                         number * ring_stride(geometry.ring_capacity));
    }
};

inline Arena view(void* base, const Geometry& geometry, std::uint64_t epoch) {
    auto* bytes = static_cast<unsigned char*>(base);
    const auto words32 = [bytes](std::uint64_t offset) {
        return reinterpret_cast<Word<std::uint32_t>*>(bytes + offset);
    };
    const auto words64 = [bytes](std::uint64_t offset) {
        return reinterpret_cast<Word<std::uint64_t>*>(bytes + offset);
    };
    return Arena{geometry,
                 epoch,
                 reinterpret_cast<FixedPart*>(bytes),
                 words32(geometry.tails),
                 words32(geometry.generations),
                 words64(geometry.finish),
                 words32(geometry.heads),
                 words32(geometry.cancel),
                 words64(geometry.ready),
                 reinterpret_cast<Record*>(bytes + geometry.records)};
}

inline void check_mapping(const void* base, std::uint64_t mapped_bytes, std::uint64_t needed_bytes) {
    if (reinterpret_cast<std::uintptr_t>(base) % kLine != 0) {
        throw TransportError("The arena's memory is not aligned to " + std::to_string(kLine) +
                             " bytes; it must be a mapping of a whole shared-memory segment.");
    }
    if (mapped_bytes < needed_bytes) {
        throw TransportError("The shared memory holds " + std::to_string(mapped_bytes) + " bytes but its arena needs " +
                             std::to_string(needed_bytes) + "; it was cut short or is not an rbee arena.");
    }
}

/// Turns fresh zeroed memory, which no other process knows yet, into an empty arena. All rings start at index
/// `first_index`, which is 0 except in tests of the wrap-around.
inline void format(void* base, std::uint64_t mapped_bytes, const Geometry& geometry, std::uint64_t epoch,
                   std::uint32_t first_index) {
    check_mapping(base, mapped_bytes, geometry.total_bytes);
    // All stores here are relaxed: the other process maps the arena after it was told its name, through a system call.
    auto* fixed = new (base) FixedPart{};
    fixed->header.abi_version = kAbiVersion;
    fixed->header.record_bytes = sizeof(Record);
    fixed->header.epoch = epoch;
    fixed->header.server_pid = process_id();
    fixed->header.geometry = geometry;
    fixed->header.magic = kMagic;
    const Arena arena = view(base, geometry, epoch);
    // Armed from the start: the first step must wake a server that has not drained yet.
    arena.fixed->doorbell.word.store(1, std::memory_order_relaxed);
    for (std::uint32_t ring = 0; ring < geometry.num_rings; ++ring) {
        new (&arena.tails[ring]) Word<std::uint32_t>(first_index);
        new (&arena.generations[ring]) Word<std::uint32_t>(0);
        new (&arena.finish[ring]) Word<std::uint64_t>(0);
        new (&arena.heads[ring]) Word<std::uint32_t>(first_index);
        new (&arena.cancel[ring]) Word<std::uint32_t>(0);
    }
    for (std::uint32_t word = 0; word < arena.ready_words(); ++word) {
        new (&arena.ready[word]) Word<std::uint64_t>(0);
    }
}

/// Checks every field of the header against this build and against the size of the mapping, on a private copy of it.
inline Arena attach(void* base, std::uint64_t mapped_bytes) {
    check_mapping(base, mapped_bytes, sizeof(FixedPart));
    Header header;
    std::memcpy(&header, base, sizeof header);
    if (header.magic != kMagic) {
        throw TransportError("The shared memory is not an rbee arena: its first eight bytes are not ours.");
    }
    if (header.abi_version != kAbiVersion || header.record_bytes != sizeof(Record)) {
        throw TransportError("The arena has layout version " + std::to_string(header.abi_version) + " with " +
                             std::to_string(header.record_bytes) + "-byte records but this process knows version " +
                             std::to_string(kAbiVersion) + " with " + std::to_string(sizeof(Record)) +
                             "; start server and engine from the same installation of rbee.");
    }
    Geometry expected;
    try {
        expected = plan(header.geometry.num_rings, header.geometry.ring_capacity);
    } catch (const std::invalid_argument& error) {
        throw TransportError(std::string("The arena's header is corrupt: ") + error.what());
    }
    // The offsets are there for other readers of the segment; for us they follow from the sizes.
    if (std::memcmp(&expected, &header.geometry, sizeof expected) != 0) {
        throw TransportError("The arena's header is corrupt: its offsets do not follow from its sizes.");
    }
    check_mapping(base, mapped_bytes, expected.total_bytes);
    return view(base, expected, header.epoch);
}

}  // namespace rbee
