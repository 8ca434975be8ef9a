// rbee_kernel_tests: the kernels, which are arithmetic in one thread.

#include "run.h"

// One array per test file.
extern const Test kAttentionTests[];
extern const Test kElementwiseTests[];
extern const Test kLinearTests[];
extern const Test kPackTests[];

int main(int argc, char** argv) {
    return run_tests({kPackTests, kElementwiseTests, kLinearTests, kAttentionTests}, argc, argv);
}
