// The places between the transport's stores at which a test kills or stops the process that passes them.
//
// Owns the list of the places, and in a build with RBEE_CRASH_POINTS what happens there. Any other build has nothing of
// it. Does not know what a place is for: docs/transport.md, "Crash points".

#pragma once

// X(name, process). `counted` and `gauge_set` stand behind each store of a counter, of either process.
#define RBEE_CRASH_POINT_LIST(X) \
    X(producer_made, engine)     \
    X(ring_opened, engine)       \
    X(start_written, engine)     \
    X(commit_begun, engine)      \
    X(sleep_withdrawn, engine)   \
    X(record_written, engine)    \
    X(tail_published, engine)    \
    X(finish_published, engine)  \
    X(ready_marked, engine)      \
    X(rung_asleep, engine)       \
    X(rung_awake, engine)        \
    X(eventfd_written, engine)   \
    X(sleep_announced, engine)   \
    X(header_formatted, server)  \
    X(arena_formatted, server)   \
    X(cancel_written, server)    \
    X(sleep_taken, server)       \
    X(eventfd_emptied, server)   \
    X(ready_taken, server)       \
    X(frames_sent, server)       \
    X(records_shown, server)     \
    X(head_published, server)    \
    X(doorbell_armed, server)    \
    X(counted, both)             \
    X(gauge_set, both)

#ifndef RBEE_CRASH_POINTS

#define RBEE_CRASH_POINT(name) static_cast<void>(0)

#else

#include <csignal>
#include <cstdint>
#include <cstdlib>
#include <iterator>
#include <sstream>
#include <string>
#include <vector>

#include <unistd.h>

#define RBEE_CRASH_POINT(name) rbee::crash_points::pass(rbee::crash_points::name)

namespace rbee::crash_points {

enum Place : std::uint32_t {
#define RBEE_X(name, process) name,
    RBEE_CRASH_POINT_LIST(RBEE_X)
#undef RBEE_X
};

struct Entry {
    const char* name;
    const char* process;
};

inline constexpr Entry kEntries[] = {
#define RBEE_X(name, process) {#name, #process},
    RBEE_CRASH_POINT_LIST(RBEE_X)
#undef RBEE_X
};

/// What a process has passed, and what it does where: the environment's RBEE_CRASH, "name:passage:signal ...", whose
/// passages count from 1.
class Plan {
public:
    Plan() {
        const char* text = std::getenv("RBEE_CRASH");
        std::istringstream words(text == nullptr ? "" : text);
        for (std::string word; words >> word;) {
            const std::size_t first = word.find(':'), second = word.find(':', first + 1);
            orders_.push_back(
                {word.substr(0, first), std::stoull(word.substr(first + 1)), std::stoi(word.substr(second + 1))});
        }
    }

    void pass(Place place) {
        const std::uint64_t passage = ++passages_[place];
        for (const Order& order : orders_) {
            if (order.passage == passage && order.name == kEntries[place].name) {
                const std::string line = "crash point " + order.name + ":" + std::to_string(passage) + "\n";
                static_cast<void>(!write(STDERR_FILENO, line.data(), line.size()));
                std::raise(order.signal);  // to this thread, which goes no further than this
            }
        }
    }

private:
    struct Order {
        std::string name;
        std::uint64_t passage;
        int signal;
    };
    std::vector<Order> orders_;
    std::uint64_t passages_[std::size(kEntries)] = {};
};

inline void pass(Place place) {
    static Plan plan;
    plan.pass(place);
}

}  // namespace rbee::crash_points

#endif
