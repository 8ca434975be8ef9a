// Runs the tests of one program: all, or those whose name contains the argument. One line per test; exit code 1 if any
// failed.

#pragma once

#include <cstring>
#include <initializer_list>

#include "check.h"

inline int run_tests(std::initializer_list<const Test*> suites, int argc, char** argv) {
    int failures = 0;
    for (const Test* test : suites) {
        for (; test->name != nullptr; ++test) {
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
