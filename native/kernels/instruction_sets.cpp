#include "rbee_kernels/instruction_sets.h"

#include <cstdlib>
#include <stdexcept>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace rbee::kernels {
namespace {

/// All sets of this build, best first.
constexpr const InstructionSet* kInstructionSets[] = {
#if defined(__x86_64__)
    &kAvx512Set,
    &kAvx2Set,
#endif
    &kPortableSet,
};

/// What this processor has, as a sum of `Feature`s.
std::uint32_t processor_features() {
    std::uint32_t features = 0;
#if defined(__x86_64__)
    const auto add = [&features](std::uint32_t feature, bool present) { features |= present ? feature : 0; };
    add(kAvx2, __builtin_cpu_supports("avx2"));
    add(kFma, __builtin_cpu_supports("fma"));
    add(kAvx512f, __builtin_cpu_supports("avx512f"));
    add(kAvx512bw, __builtin_cpu_supports("avx512bw"));
    add(kAvx512dq, __builtin_cpu_supports("avx512dq"));
    add(kAvx512vl, __builtin_cpu_supports("avx512vl"));
    add(kAvx512vnni, __builtin_cpu_supports("avx512vnni"));
    unsigned a, b, c, d;  // not every compiler's __builtin_cpu_supports() has f16c
    add(kF16c, __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & bit_F16C) != 0);
#endif
    return features;
}

bool runs_here(const InstructionSet& set) {
    static const std::uint32_t features = processor_features();
    return (set.required & ~features) == 0;
}

/// "'auto', 'avx2' or 'portable'": what can be chosen here.
std::string choices() {
    std::string names = "'auto'";
    for (const InstructionSet* set : kInstructionSets) {
        if (runs_here(*set)) {
            names += std::string(set == &kPortableSet ? " or '" : ", '") + set->name + "'";
        }
    }
    return names;
}

}  // namespace

const InstructionSet* find_instruction_set(std::string_view name) {
    for (const InstructionSet* set : kInstructionSets) {
        if ((name == "auto" || name == set->name) && runs_here(*set)) {
            return set;
        }
    }
    return nullptr;
}

const InstructionSet& choose_instruction_set(std::string_view name) {
    const char* override_name = name == "auto" ? std::getenv("RBEE_INSTRUCTION_SET") : nullptr;
    const std::string wanted(override_name != nullptr ? override_name : name);
    const InstructionSet* set = find_instruction_set(wanted);
    if (set == nullptr) {
        throw std::invalid_argument("This processor does not have the instruction set '" + wanted +
                                    "', or rbee does not know it. Use " + choices() +
                                    (override_name != nullptr ? " in RBEE_INSTRUCTION_SET." : "."));
    }
    return *set;
}

}  // namespace rbee::kernels
