// rbee_model_tests: what runs in several threads: sampling, the thread pool, and the model that computes on it.

#include "run.h"

// One array per test file.
extern const Test kModelTests[];
extern const Test kSamplingTests[];
extern const Test kThreadPoolTests[];

int main(int argc, char** argv) { return run_tests({kSamplingTests, kThreadPoolTests, kModelTests}, argc, argv); }
