// What is compiled once per instruction set, as a table of functions, and the choice of one.
//
// Owns the list. What each function does is said where it is defined: `linear.h`, `attention.h`, `elementwise.h`.

#pragma once

#include <cstddef>
#include <cstdint>

#include "rbee_kernels/attention_task.h"
#include "rbee_kernels/elementwise_functions.h"
#include "rbee_kernels/linear_task.h"

namespace rbee::kernels {

struct InstructionSet {
    const char* name;
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
const InstructionSet* find_instruction_set(const char* name);

}  // namespace rbee::kernels
