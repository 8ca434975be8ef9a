// What the model check consists of: programs, and what exploring them must show.

#pragma once

#include <functional>
#include <string>

#include "explorer.h"

namespace model {

/// A program that must have no wrong execution, or, as a control, must have one.
struct Case {
    const char* name;
    bool must_fail;
    std::function<Program()> (*prepare)();  // once per search: what it captures outlives every execution
};

// One array per file, which a null name ends.
extern const Case kScenarios[];
extern const Case kControls[];

/// A program whose executions must have exactly these outcomes.
struct Litmus {
    const char* name;
    const char* outcomes;  // in alphabetical order, separated by blanks
    std::function<Program()> (*prepare)(std::function<void(const std::string&)> came_out);
};
extern const Litmus kLitmus[];

}  // namespace model
