// What is compiled once per instruction set, as a table of functions, and the choice of one.
//
// Owns the list. Each function is documented where it is defined: `linear.h`, `attention.h`, `elementwise.h`.

#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "rbee_kernels/attention_task.h"
#include "rbee_kernels/elementwise_functions.h"
#include "rbee_kernels/linear_task.h"

namespace rbee::kernels {

/// What a processor may have.
enum Feature : std::uint32_t {
    kAvx2 = 1u << 0,
    kFma = 1u << 1,
    kF16c = 1u << 2,
    kAvx512f = 1u << 3,
    kAvx512bw = 1u << 4,
    kAvx512dq = 1u << 5,
    kAvx512vl = 1u << 6,
    kAvx512vnni = 1u << 7,
};

struct InstructionSet {
    const char* name;
    std::uint32_t required;  // a sum of `Feature`s
    LinearFunctions linear;
    ElementwiseFunctions elementwise;
    AttentionFunctions attention;
};

extern const InstructionSet kPortableSet;
#if defined(__x86_64__)
extern const InstructionSet kAvx2Set;
extern const InstructionSet kAvx512Set;
#endif

/// The named one ("avx512", "avx2" or "portable"), or with "auto" the best that this processor has. Null: it has not.
const InstructionSet* find_instruction_set(std::string_view name);

/// The same, but "auto" is what the environment's RBEE_INSTRUCTION_SET names, if it is set. std::invalid_argument with
/// the choices if the processor has not the named one.
const InstructionSet& choose_instruction_set(std::string_view name);

}  // namespace rbee::kernels
