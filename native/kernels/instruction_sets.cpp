#include "rbee_kernels/instruction_sets.h"

#include <string_view>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace rbee::kernels {
namespace {

#if defined(__x86_64__)
/// Not every compiler's __builtin_cpu_supports() knows it.
bool has_f16c() {
    unsigned a, b, c, d;
    return __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & bit_F16C) != 0;
}
#endif

bool runs_here(const InstructionSet* set) {
#if defined(__x86_64__)
    if (set == &kAvx2Set) {
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
    }
    if (set == &kAvx512Set) {
        return runs_here(&kAvx2Set) && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
               __builtin_cpu_supports("avx512vnni");
    }
#endif
    return set == &kPortableSet;
}

}  // namespace

const InstructionSet* find_instruction_set(const char* name) {
    const std::string_view wanted = name;
    for (const InstructionSet* set : {
#if defined(__x86_64__)
             &kAvx512Set, &kAvx2Set,
#endif
             &kPortableSet}) {
        if ((wanted == "auto" || wanted == set->name) && runs_here(set)) {
            return set;
        }
    }
    return nullptr;
}

}  // namespace rbee::kernels
