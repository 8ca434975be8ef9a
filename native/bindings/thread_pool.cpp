// The Python face of the compute threads, in rbee.engine._kernels. Its documentation is rbee/engine/_kernels.pyi.
//
// Owns nothing: what runs on a pool is bound elsewhere and takes it as an argument. Workers never touch Python, so a
// thread that holds the GIL may wait for them to end.

#include <nanobind/nanobind.h>

#include "rbee_kernels/thread_pool.h"

#include "kernels_module.h"

namespace nb = nanobind;
using namespace nb::literals;

void bind_thread_pool(nb::module_& m) {
    using rbee::kernels::ThreadPool;
    nb::class_<ThreadPool>(m, "ThreadPool")
        .def(nb::init<std::size_t>(), "threads"_a)
        .def_prop_ro("threads", &ThreadPool::threads);
}
