#include "rbee_kernels/instruction_sets.h"

#include <string_view>

namespace rbee::kernels {
namespace {

bool runs_here(const InstructionSet* set) {
#if defined(__x86_64__)
    if (set == &kAvx2Set) {
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
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
