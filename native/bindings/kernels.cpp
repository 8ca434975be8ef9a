// The native module rbee.engine._kernels. Its documentation is rbee/engine/_kernels.pyi.
//
// Owns nothing but the list of what is in it.

#include "kernels_module.h"

NB_MODULE(_kernels, m) {
    m.doc() = "The CPU kernels of rbee.engine, in C++; see native/kernels.";
    bind_thread_pool(m);  // before those whose signatures name its class
    bind_packing(m);
    bind_sampling(m);
    bind_runner(m);
    bind_floors(m);
}
