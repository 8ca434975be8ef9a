// What both processes of the stress program have in common: the rings, the records of the control channel, the numbers
// of the tokens, and how to wait.
//
// Owns no state. Does not know what either process does next.

#pragma once

#include <cstdint>

#include <poll.h>

#include "rbee/layout.h"
#include "rbee/platform.h"

namespace stress {

constexpr int kPatienceMs = 10'000;
constexpr std::uint32_t kRings = 64;
constexpr std::uint32_t kCapacity = 16;
constexpr rbee::FinishCode kLength = 2, kAborted = 3, kStopped = 4;

/// A Submit on the control channel, which is a pipe. One without generation is a Wake.
struct Submission {
    std::uint32_t ring;
    std::uint32_t generation;
    std::uint32_t request;
    std::uint32_t length;
};

/// Encodes the request and the number of a token.
inline std::uint32_t token(std::uint32_t request, std::uint32_t index) { return request << 12 | (index & 0xfff); }

inline void idle(std::uint32_t turns) {
    for (volatile std::uint32_t left = turns; left != 0; left = left - 1) {
    }
}

/// Waits for the other process: spins at first, to come back at the very moment, and then lets it run if both share a
/// core.
template <typename Condition>
void spin_while(Condition condition) {
    for (int turn = 0; condition(); ++turn) {
        if (turn > 2'000) {
            rbee::give_way();
        }
    }
}

/// True when the descriptor is readable, false when patience ends.
inline bool sleep_on(int fd, int milliseconds) {
    pollfd waiting{fd, POLLIN, 0};
    return poll(&waiting, 1, milliseconds) == 1;
}

}  // namespace stress
