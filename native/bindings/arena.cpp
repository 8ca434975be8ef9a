// The Python face of an arena's memory, in rbee.transport._native. Its documentation is rbee/transport/_native.pyi.
//
// Owns conversions. Does not know how the memory is mapped, or which side it is mapped for.

#include <nanobind/nanobind.h>

#include "rbee/layout.h"

#include "python_memory.h"
#include "transport_module.h"

using namespace nb::literals;

void bind_arena(nb::module_& m) {
    m.def(
        "arena_size",
        [](std::uint32_t num_rings, std::uint32_t ring_capacity) {
            return rbee::plan(num_rings, ring_capacity).total_bytes;
        },
        "num_rings"_a, "ring_capacity"_a);
    m.def(
        "format_arena",
        [](nb::handle buffer, std::uint32_t num_rings, std::uint32_t ring_capacity, std::uint64_t epoch,
           std::uint32_t first_index) {
            const Buffer memory(buffer, PyBUF_WRITABLE);
            rbee::format(memory.data(), memory.size(), rbee::plan(num_rings, ring_capacity), epoch, first_index);
        },
        "buffer"_a, nb::kw_only(), "num_rings"_a, "ring_capacity"_a, "epoch"_a, "first_index"_a);
    m.def(
        "inspect_arena",
        [](nb::handle buffer) {
            const Buffer memory(buffer, PyBUF_WRITABLE);
            const rbee::Arena arena = rbee::attach(memory.data(), memory.size());
            return nb::make_tuple(arena.geometry.num_rings, arena.geometry.ring_capacity, arena.epoch);
        },
        "buffer"_a);
}
