// Threads of a program that run one at a time, each on a stack of its own, within one thread of the machine.
//
// Owns the stacks and the places where they were left. Does not know whose turn it is.

#pragma once

#include <csetjmp>
#include <memory>

#include <ucontext.h>

namespace model {

/// A stack of its own, and where it was left.
struct Fiber {
    ucontext_t start{};
    std::jmp_buf position{};
    bool started = false;
    std::unique_ptr<char[]> stack{};
};

/// Lets the next switch to `fiber` begin `run`, whatever it was doing. Its stack is not unwound.
void begin(Fiber& fiber, void (*run)());

/// Leaves `from` here until something switches to it.
void switch_to(Fiber& from, Fiber& to);

}  // namespace model
