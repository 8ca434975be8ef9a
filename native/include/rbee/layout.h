// The arena: what lies where in the one shared-memory segment of an engine epoch.
//
// Owns the layout, its validation and the errors of the core. Does not know Python, nor the procedures of producer.h
// (engine process) and consumer.h (server process). Why lines have 128 bytes and one writer each: docs/transport.md.

#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <new>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "rbee/counters.h"
#include "rbee/crash_points.h"
#include "rbee/histogram.h"
#include "rbee/platform.h"

namespace rbee {

/// The shared memory, or the doorbell, is not usable or not what this build expects.
struct TransportError : std::runtime_error {
    using std::runtime_error::runtime_error;
};

constexpr std::size_t kLine = 128;
constexpr std::uint64_t kMagic = 0x6d68735f65656272;  // "rbee_shm" as little-endian bytes
constexpr std::uint32_t kAbiVersion = 6;
constexpr std::uint32_t kMaxRings = 1u << 16;
constexpr std::uint32_t kMaxRingCapacity = 1u << 20;

// Words shared between processes must be plain memory without a hidden lock.
static_assert(Word<std::uint32_t>::is_always_lock_free && sizeof(Word<std::uint32_t>) == 4);
static_assert(Word<std::uint64_t>::is_always_lock_free && sizeof(Word<std::uint64_t>) == 8);

/// With this bit in its token, a record is a side record: it describes tokens, but is no output.
constexpr std::uint32_t kSideRecord = 1u << 31;

/// One sampled token, or a side record. `commit_ns` is CLOCK_MONOTONIC at the commit of its step, `logprob` the natural
/// logarithm of the token's probability, NaN if the request did not need it.
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
    std::uint64_t starts;
    std::uint64_t ready;
    std::uint64_t records;
    std::uint64_t total_bytes;
};
static_assert(sizeof(Geometry) == 80);

/// Written by the server before another process can see the arena, and never again.
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

#define RBEE_FIELD(type, field, name, kind, help) Word<type> field;
/// Written by the engine only: counters, and after each step gauges.
struct alignas(kLine) EngineLine {
    RBEE_ENGINE_COUNTERS(RBEE_FIELD)
};

/// Written by the server only: two lines; the second has room for more.
struct alignas(2 * kLine) ServerLines {
    RBEE_SERVER_COUNTERS(RBEE_FIELD)
};
#undef RBEE_FIELD

/// A counter's place in its line.
struct CounterPlace {
    const char* name;
    const char* kind;
    const char* help;
    std::size_t offset;
    std::size_t bytes;
};
#define RBEE_PLACE(type, field, name, kind, help) {#name, #kind, help, offsetof(Line, field), sizeof(type)},
template <typename Line>
struct CountersOf;
template <>
struct CountersOf<EngineLine> {
    using Line = EngineLine;
    static constexpr CounterPlace places[] = {RBEE_ENGINE_COUNTERS(RBEE_PLACE)};
};
template <>
struct CountersOf<ServerLines> {
    using Line = ServerLines;
    static constexpr CounterPlace places[] = {RBEE_SERVER_COUNTERS(RBEE_PLACE)};
};
#undef RBEE_PLACE

/// True if the counters follow each other without a gap: each offset is the sum of the sizes before it.
template <typename Line>
constexpr bool counters_are_packed() {
    std::size_t offset = 0;
    for (const CounterPlace& place : CountersOf<Line>::places) {
        if (place.offset != offset) {
            return false;
        }
        offset += place.bytes;
    }
    return offset <= sizeof(Line);
}
static_assert(counters_are_packed<EngineLine>() && sizeof(EngineLine) == kLine);
static_assert(counters_are_packed<ServerLines>() && sizeof(ServerLines) == 2 * kLine);

/// Calls `visit(name, value)` for each counter of a line. Relaxed loads: each number stands for itself.
template <typename Visit>
void visit_counters(const EngineLine& line, Visit&& visit) {
#define RBEE_VISIT(type, field, name, kind, help) visit(#name, line.field.load(std::memory_order_relaxed));
    RBEE_ENGINE_COUNTERS(RBEE_VISIT)
}
template <typename Visit>
void visit_counters(const ServerLines& line, Visit&& visit) {
    RBEE_SERVER_COUNTERS(RBEE_VISIT)
#undef RBEE_VISIT
}

/// Durations and sizes.
struct alignas(kLine) Histograms {
#define RBEE_HISTOGRAM(name, unit, help) Histogram name;
    RBEE_HISTOGRAMS(RBEE_HISTOGRAM)
#undef RBEE_HISTOGRAM
};
static_assert(sizeof(Histograms) == 13 * kBuckets * 8);

/// The part of the arena whose place does not depend on its size; the arrays of Geometry follow.
struct FixedPart {
    Header header;
    DoorbellLine doorbell;
    WaitLine wait;
    EngineLine engine;
    ServerLines server;
    Histograms histograms;
};
static_assert(std::is_standard_layout_v<FixedPart> && sizeof(FixedPart) == 6 * kLine + sizeof(Histograms));
static_assert(offsetof(FixedPart, doorbell) == 1 * kLine && offsetof(FixedPart, wait) == 2 * kLine);
static_assert(offsetof(FixedPart, engine) == 3 * kLine && offsetof(FixedPart, server) == 4 * kLine);
static_assert(offsetof(FixedPart, histograms) == 6 * kLine);

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
    g.starts = g.cancel + rings * 4;
    g.ready = g.starts + rings * 8;
    g.records = up_to_line(g.ready + rings / 8);
    g.total_bytes = g.records + rings * ring_stride(ring_capacity);
    return g;
}
static_assert(lay_out(64, 2).tails == sizeof(FixedPart) && lay_out(64, 2).generations == sizeof(FixedPart) + 256);
static_assert(lay_out(64, 2).finish == sizeof(FixedPart) + 512 && lay_out(64, 2).heads == sizeof(FixedPart) + 1024);
static_assert(lay_out(64, 2).cancel == sizeof(FixedPart) + 1280 && lay_out(64, 2).starts == sizeof(FixedPart) + 1536);
static_assert(lay_out(64, 2).ready == sizeof(FixedPart) + 2048);
static_assert(lay_out(64, 2).records == sizeof(FixedPart) + 2176);
static_assert(lay_out(64, 2).total_bytes == sizeof(FixedPart) + 2176 + 64 * (2 * 16 + 128));
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
    Word<std::uint64_t>* starts;
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
                 words64(geometry.starts),
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

/// Turns fresh zeroed memory, which no other process has mapped, into an empty arena. All rings start at index
/// `first_index`, which is 0 except in tests of the wrap-around.
inline void format(void* base, std::uint64_t mapped_bytes, const Geometry& geometry, std::uint64_t epoch,
                   std::uint32_t first_index) {
    check_mapping(base, mapped_bytes, geometry.total_bytes);
    // Relaxed, no pair: the other process maps the arena after it received its name through a system call.
    auto* fixed = new (base) FixedPart{};
    fixed->header.abi_version = kAbiVersion;
    fixed->header.record_bytes = sizeof(Record);
    fixed->header.epoch = epoch;
    fixed->header.server_pid = process_id();
    fixed->header.geometry = geometry;
    fixed->header.magic = kMagic;
    RBEE_CRASH_POINT(header_formatted);
    const Arena arena = view(base, geometry, epoch);
    // Armed from the start: the first step must wake a server that has not drained yet.
    arena.fixed->doorbell.word.store(1, std::memory_order_relaxed);
    for (std::uint32_t ring = 0; ring < geometry.num_rings; ++ring) {
        new (&arena.tails[ring]) Word<std::uint32_t>(first_index);
        new (&arena.generations[ring]) Word<std::uint32_t>(0);
        new (&arena.finish[ring]) Word<std::uint64_t>(0);
        new (&arena.heads[ring]) Word<std::uint32_t>(first_index);
        new (&arena.cancel[ring]) Word<std::uint32_t>(0);
        new (&arena.starts[ring]) Word<std::uint64_t>(0);
    }
    for (std::uint32_t word = 0; word < arena.ready_words(); ++word) {
        new (&arena.ready[word]) Word<std::uint64_t>(0);
    }
    RBEE_CRASH_POINT(arena_formatted);
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
