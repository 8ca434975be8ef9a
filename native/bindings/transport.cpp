// The native module rbee.transport._native. Its documentation for users is rbee/transport/_native.pyi.
//
// Owns nothing but the list of what is in it, and the exception that its errors become. Every call keeps the GIL: all
// take microseconds, but for a drain that sends to hundreds of sockets, which is what its process is there for; and but
// for the wait for another process' end. One thread per side is what the core expects.

#include <exception>

#include <nanobind/nanobind.h>

#include "rbee/layout.h"

#include "transport_module.h"

namespace nb = nanobind;

NB_MODULE(_native, m) {
    m.doc() = "The shared-memory core of rbee.transport, in C++; see docs/transport.md.";

    nb::register_exception_translator(
        [](const std::exception_ptr& error, void* transport_error) {
            try {
                std::rethrow_exception(error);
            } catch (const rbee::TransportError& e) {
                PyErr_SetString(static_cast<PyObject*>(transport_error), e.what());
            }
        },
        nb::module_::import_("rbee.errors").attr("TransportError").inc_ref().ptr());

    bind_arena(m);
    bind_counters(m);
    bind_life_line(m);
    bind_producer(m);
    bind_vocabulary(m);  // before those whose signatures name its class
    bind_outlet(m);
    bind_consumer(m);
}
