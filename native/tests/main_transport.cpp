// Runs every test, or those whose name contains the argument; exit code 1 and a line per failure.

#include <cstring>

#include "check.h"

// One array per test file.
extern const Test kAttentionTests[];
extern const Test kDeliveryTests[];
extern const Test kElementwiseTests[];
extern const Test kFuzzTests[];
extern const Test kLayoutTests[];
extern const Test kLinearTests[];
extern const Test kModelTests[];
extern const Test kPackTests[];
extern const Test kRolesTests[];
extern const Test kSamplingTests[];
extern const Test kThreadPoolTests[];
extern const Test kThreadsTests[];
extern const Test kWakeupTests[];

int main(int argc, char** argv) {
    int failures = 0;
    for (const Test* tests : {kLayoutTests, kRolesTests, kDeliveryTests, kFuzzTests, kSamplingTests, kPackTests,
                              kElementwiseTests, kLinearTests, kAttentionTests, kThreadPoolTests, kModelTests, kWakeupTests,
                              kThreadsTests}) {
        for (const Test* test = tests; test->name != nullptr; ++test) {
            if (argc > 1 && std::strstr(test->name, argv[1]) == nullptr) {
                continue;
            }
            try {
                test->run();
                std::printf("ok      %s\n", test->name);
            } catch (const std::exception& error) {
                ++failures;
                std::printf("FAILED  %s\n        %s\n", test->name, error.what());
            }
            std::fflush(stdout);
        }
    }
    return failures == 0 ? 0 : 1;
}
