// ucontext starts a fiber; from then on _setjmp and _longjmp switch, because they make no system calls.

#undef _FORTIFY_SOURCE  // its longjmp() refuses to go to another stack
#include "fiber.h"

#include <cstddef>

namespace model {
namespace {

constexpr std::size_t kStackBytes = 1 << 17;

}  // namespace

void begin(Fiber& fiber, void (*run)()) {
    if (fiber.stack == nullptr) {
        fiber.stack = std::make_unique<char[]>(kStackBytes);
    }
    fiber.started = false;
    getcontext(&fiber.start);
    fiber.start.uc_stack.ss_sp = fiber.stack.get();
    fiber.start.uc_stack.ss_size = kStackBytes;
    makecontext(&fiber.start, run, 0);
}

[[gnu::noinline]] void switch_to(Fiber& from, Fiber& to) {
    if (_setjmp(from.position) == 0) {
        if (to.started) {
            _longjmp(to.position, 1);
        }
        to.started = true;
        setcontext(&to.start);
    }
}

}  // namespace model
