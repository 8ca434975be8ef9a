// The kernels for AVX-512 with VNNI.

#include "rbee_kernels/attention.h"
#include "rbee_kernels/elementwise.h"
#include "rbee_kernels/instruction_sets.h"
#include "rbee_kernels/linear.h"

namespace rbee::kernels {

const InstructionSet kAvx512Set{"avx512",
                                kAvx2 | kFma | kF16c | kAvx512f | kAvx512bw | kAvx512dq | kAvx512vl | kAvx512vnni,
                                kLinearFunctions, kElementwiseFunctions, kAttentionFunctions};

}  // namespace rbee::kernels
