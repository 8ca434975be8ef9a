// The Python face of life_line.h, in rbee.transport._native. Its documentation is rbee/transport/_native.pyi.
//
// Owns conversions. Does not know how the memory is mapped.

#include <cstdint>
#include <memory>

#include <nanobind/nanobind.h>

#include "rbee/life_line.h"

#include "python_memory.h"
#include "transport_module.h"

using namespace nb::literals;

namespace {

rbee::LifeLine line_in(const Buffer& memory) {
    if (memory.size() < rbee::LifeLine::kBytes ||
        reinterpret_cast<std::uintptr_t>(memory.data()) % rbee::LifeLine::kBytes != 0) {
        throw rbee::TransportError("This memory is too small for a life line, or not aligned.");
    }
    return rbee::LifeLine(memory.data());
}

void hold(nb::handle object) {
    auto memory = std::make_unique<Buffer>(object, PyBUF_WRITABLE);
    line_in(*memory).hold();
    static_cast<void>(memory.release());  // mapped as long as the thread may live: the kernel writes there at its end
}

void await(nb::handle object) {
    const Buffer memory(object, PyBUF_WRITABLE);
    rbee::LifeLine line = line_in(memory);
    nb::gil_scoped_release released;
    line.wait();
}

}  // namespace

void bind_life_line(nb::module_& m) {
    m.def("format_life_line", [](nb::handle memory) { line_in(Buffer(memory, PyBUF_WRITABLE)).format(); }, "memory"_a);
    m.def("hold_life_line", &hold, "memory"_a);
    m.def("await_life_line", &await, "memory"_a);
}
