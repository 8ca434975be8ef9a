// Runs every case, or those whose name contains the argument; `--list` names them. The thorough ones take minutes and
// run only on request. Stops at the first case that is not as it must be: exit code 1, and the execution
// that shows it.

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <set>

#include "cases.h"

namespace {

bool wanted(int argc, char** argv, const char* name) {
    if (argc > 1 && std::strcmp(argv[1], "--list") == 0) {
        std::printf("%s\n", name);
        return false;
    }
    return argc < 2 ? std::strncmp(name, "thorough", 8) != 0 : std::strstr(name, argv[1]) != nullptr;
}

void report(const char* name, const model::Result& result, bool as_it_must_be, const std::string& what) {
    std::printf("%s  %s: %s; %llu states, %llu executions, %.2f s\n", as_it_must_be ? "ok    " : "FAILED", name,
                what.c_str(), static_cast<unsigned long long>(result.states),
                static_cast<unsigned long long>(result.executions), result.seconds);
    if (!as_it_must_be) {
        std::printf("%s", result.trace.c_str());
        std::exit(1);
    }
    std::fflush(stdout);
}

}  // namespace

int main(int argc, char** argv) {
    for (const model::Litmus* litmus = model::kLitmus; litmus->name != nullptr; ++litmus) {
        if (wanted(argc, argv, litmus->name)) {
            std::set<std::string> seen;
            const model::Result result =
                model::explore(litmus->prepare([&seen](const std::string& outcome) { seen.insert(outcome); }));
            std::string outcomes = result.violation;
            for (const std::string& outcome : seen) {
                outcomes += (outcomes.empty() ? "" : " ") + outcome;
            }
            report(litmus->name, result, outcomes == litmus->outcomes, outcomes);
        }
    }
    for (const model::Case* cases : {model::kControls, model::kScenarios}) {
        for (const model::Case* one = cases; one->name != nullptr; ++one) {
            if (wanted(argc, argv, one->name)) {
                const model::Result result = model::explore(one->prepare());
                report(one->name, result, result.violation.empty() != one->must_fail,
                       result.violation.empty() ? "nothing wrong" : result.violation);
            }
        }
    }
    return 0;
}
