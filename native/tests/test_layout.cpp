// The arena's header: what attach() accepts and what it refuses.

#include <vector>

#include "check.h"

namespace {

void attach_finds_what_was_formatted() {
    const TestArena memory(128, 16);
    const rbee::Arena arena = memory.attach();
    CHECK(arena.geometry.num_rings == 128 && arena.geometry.ring_capacity == 16 && arena.epoch == 7);
    CHECK(reinterpret_cast<unsigned char*>(arena.ring(127) + 16) + rbee::kLine == memory.base() + memory.bytes());
    CHECK(reinterpret_cast<std::uintptr_t>(arena.records) % rbee::kLine == 0);
}

void sizes_that_no_arena_can_have_are_refused() {
    for (const std::uint32_t rings : {0u, 1u, 63u, 65u, rbee::kMaxRings + 64, 0xffffffc0u}) {
        CHECK_THROWS(std::invalid_argument, rbee::plan(rings, 16));
    }
    for (const std::uint32_t capacity : {0u, 1u, 3u, 1000u, rbee::kMaxRingCapacity * 2, 0x80000000u}) {
        CHECK_THROWS(std::invalid_argument, rbee::plan(64, capacity));
    }
}

void memory_that_is_too_small_or_misaligned_is_refused() {
    const TestArena memory(64, 16);
    for (std::size_t bytes = 0; bytes < memory.bytes(); ++bytes) {
        CHECK_THROWS(rbee::TransportError, rbee::attach(memory.base(), bytes));
    }
    CHECK_THROWS(rbee::TransportError, rbee::attach(memory.base() + 8, memory.bytes() - 8));
    CHECK_THROWS(rbee::TransportError, rbee::format(memory.base(), memory.bytes() - 1, rbee::plan(64, 16), 1, 0));
}

/// Every single-byte change of the header either is refused or changes nothing that an access depends on.
void a_damaged_header_is_refused() {
    const TestArena memory(64, 16);
    for (std::size_t byte = 0; byte < sizeof(rbee::Header); ++byte) {
        for (unsigned change = 1; change < 256; ++change) {
            memory.base()[byte] = static_cast<unsigned char>(memory.base()[byte] ^ change);
            bool refused = false;
            try {
                const rbee::Arena arena = memory.attach();
                CHECK(arena.geometry.num_rings == 64 && arena.geometry.ring_capacity == 16);
            } catch (const rbee::TransportError&) {
                refused = true;
            }
            const bool unused = (byte >= offsetof(rbee::Header, epoch) && byte < offsetof(rbee::Header, geometry)) ||
                                byte >= offsetof(rbee::Header, geometry) + sizeof(rbee::Geometry);
            CHECK(refused != unused);
            memory.base()[byte] = static_cast<unsigned char>(memory.base()[byte] ^ change);
        }
    }
    memory.attach();
}

void a_header_that_claims_more_than_is_mapped_is_refused() {
    const TestArena memory(64, 16);
    rbee::Header header;
    std::memcpy(&header, memory.base(), sizeof header);
    for (const std::uint32_t rings : {128u, rbee::kMaxRings}) {
        for (const std::uint32_t capacity : {16u, 32u, rbee::kMaxRingCapacity}) {
            header.geometry = rbee::plan(rings, capacity);  // consistent in itself
            std::memcpy(memory.base(), &header, sizeof header);
            CHECK_THROWS(rbee::TransportError, memory.attach());
        }
    }
}

/// Offsets that follow from the sizes do not make the sizes right.
void a_consistent_header_with_impossible_sizes_is_refused() {
    const TestArena memory(128, 16);
    rbee::Header header;
    std::memcpy(&header, memory.base(), sizeof header);
    const std::uint32_t sizes[][2] = {{0, 16}, {65, 16}, {100, 2}, {64, 0}, {64, 1}, {64, 3}, {64, 12}};
    for (const auto& [rings, capacity] : sizes) {
        header.geometry = rbee::lay_out(rings, capacity);
        CHECK(header.geometry.total_bytes <= memory.bytes());
        std::memcpy(memory.base(), &header, sizeof header);
        CHECK_THROWS(rbee::TransportError, memory.attach());
    }
}

}  // namespace

extern const Test kLayoutTests[];
const Test kLayoutTests[] = {
    {"attach finds what was formatted", attach_finds_what_was_formatted},
    {"sizes that no arena can have are refused", sizes_that_no_arena_can_have_are_refused},
    {"memory that is too small or misaligned is refused", memory_that_is_too_small_or_misaligned_is_refused},
    {"a damaged header is refused", a_damaged_header_is_refused},
    {"a header that claims more than is mapped is refused", a_header_that_claims_more_than_is_mapped_is_refused},
    {"a consistent header with impossible sizes is refused", a_consistent_header_with_impossible_sizes_is_refused},
    {nullptr, nullptr}};
