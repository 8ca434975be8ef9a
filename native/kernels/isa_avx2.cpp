// The kernels for AVX2, FMA and F16C.

#include "rbee_kernels/attention.h"
#include "rbee_kernels/elementwise.h"
#include "rbee_kernels/instruction_sets.h"
#include "rbee_kernels/linear.h"

namespace rbee::kernels {

const InstructionSet kAvx2Set{"avx2", kAvx2 | kFma | kF16c, kLinearFunctions, kElementwiseFunctions,
                              kAttentionFunctions};

}  // namespace rbee::kernels
