// The kernels for any machine.

#include "rbee_kernels/attention.h"
#include "rbee_kernels/elementwise.h"
#include "rbee_kernels/instruction_sets.h"
#include "rbee_kernels/linear.h"

namespace rbee::kernels {

const InstructionSet kPortableSet{"portable", 0, kLinearFunctions, kElementwiseFunctions, kAttentionFunctions};

}  // namespace rbee::kernels
