// The core itself under the explorer: its two sides as threads over one arena of 64 rings with two records each.
//
// Owns what each side can do, and what must be true of what it receives. Does not know the order of a scenario.
//
// The server sleeps until the eventfd is not empty, and the engine until a Wake or a Submit is there. Of the control
// channel only what the core relies on is assumed: a Submit brings the past of its sender with it, a Wake nothing. What
// a World notes of a request is the server's, but for what was published, and changes hands with its Submit only.

#pragma once

#include <algorithm>
#include <functional>
#include <initializer_list>
#include <memory>
#include <string>
#include <vector>

#include "explorer.h"
#include "rbee/consumer.h"
#include "rbee/producer.h"

namespace model {

constexpr std::uint32_t kCapacity = 2;
constexpr std::uint32_t kWrapping = 0xffffffff;  // the second record of a ring has index 0
constexpr rbee::FinishCode kDone = 2;
constexpr rbee::FinishCode kAborted = 3;
constexpr rbee::FinishCode kFailed = 4;
constexpr std::size_t kEverything = 4096;
constexpr int kAnyFd = 0;

/// What lives as long as a search: shared memory, whose words the explorer identifies by their addresses.
struct Shared {
    explicit Shared(std::uint32_t first_index) {
        rbee::format(memory, sizeof memory, rbee::plan(64, kCapacity), 1, first_index);
    }
    alignas(rbee::kLine) unsigned char memory[rbee::lay_out(64, kCapacity).total_bytes] = {};
    rbee::Word<std::uint32_t> submitted{0};  // a Submit on the control channel: the generation of ring 0
    rbee::Word<std::uint32_t> wakes{0};      // Wake records on the control channel
};

inline void demand(bool condition, const char* what) {
    if (!condition) {
        violated(what);
    }
}

/// The i-th token of a request.
inline std::uint32_t token(std::uint32_t ring, std::uint32_t generation, std::uint32_t i) {
    return generation << 16 | ring << 8 | (i + 1);
}

/// One execution: both sides and what the server has received.
struct World {
    explicit World(Shared& memory)
        : shared(memory),
          producer(rbee::attach(memory.memory, sizeof memory.memory), kAnyFd),
          consumer(rbee::attach(memory.memory, sizeof memory.memory), kAnyFd) {}

    // -- both sides, before the threads start

    /// A request in the lowest free ring, which the engine has opened already.
    void start(std::uint32_t length) {
        const std::uint32_t ring = assign(length);
        producer.open(ring, requests[ring].generation);
    }

    // -- the engine

    /// Publishes one token for each of `rings`, and the ends of `finished`.
    void commit(std::initializer_list<std::uint32_t> rings, std::initializer_list<std::uint32_t> finished = {},
                rbee::FinishCode reason = kDone) {
        std::uint32_t tokens[2];
        std::uint32_t* next = tokens;
        for (const std::uint32_t ring : rings) {
            *next++ = token(ring, requests[ring].generation, requests[ring].published++);
        }
        const float logprobs[] = {0, 0};
        const rbee::FinishCode reasons[] = {reason, reason};
        producer.commit({rings.size(), rings.begin(), tokens, logprobs, finished.size(), finished.begin(), reasons});
    }

    /// Sleeps unless `ready` after the announcement.
    template <typename Ready>
    void sleep_unless(Ready ready) {
        producer.arm_wait();
        if (!ready()) {
            shared.wakes.await();
            shared.wakes.exchange(0, std::memory_order_relaxed);
        }
    }

    /// Publishes the rest of ring 0's request as space comes, one token a step.
    void publish_with_backpressure() {
        while (requests[0].published < requests[0].length) {
            if (producer.free_space(0) == 0) {
                sleep_unless([&] { return producer.free_space(0) != 0; });
            } else if (requests[0].published + 1 < requests[0].length) {
                commit({0});
            } else {
                commit({0}, {0});
            }
        }
    }

    bool is_cancelled(std::uint32_t ring) {
        producer.take_cancelled(cancelled);
        return std::find(cancelled.begin(), cancelled.end(), ring) != cancelled.end();
    }

    void wait_for_submission(std::uint32_t generation) {
        shared.submitted.await(std::memory_order_acquire);
        shared.submitted.exchange(0, std::memory_order_acquire);
        producer.open(0, generation);
    }

    // -- the server

    std::uint32_t assign(std::uint32_t length) {
        rbee::Consumer::Assigned assigned{};
        demand(consumer.assign(assigned), "there is no free ring");
        demand(assigned.ring < 2, "a finished ring has not come back");
        requests[assigned.ring] = {assigned.generation, length, 0, 0, false};
        return assigned.ring;
    }

    void submit(std::uint32_t length) {
        demand(assign(length) == 0, "ring 0 has not come back");
        shared.submitted.exchange(requests[0].generation, std::memory_order_acq_rel);
    }

    void wake_engine() { shared.wakes.fetch_add(1, std::memory_order_relaxed); }

    void cancel(std::uint32_t ring) {
        requests[ring].cancelled = true;
        if (consumer.cancel(ring)) {
            wake_engine();
        }
    }

    /// True if it must drain again by itself.
    bool drain(std::size_t budget = kEverything, rbee::Then then = rbee::Then::arm) {
        const rbee::DrainEnd end = consumer.drain(
            budget, then, [this](std::uint32_t ring, const rbee::Records& records, rbee::FinishCode reason) {
                Request& request = requests[ring];
                for (std::uint32_t i = 0; i < records.size(); ++i) {
                    demand(records[i].token_id == token(ring, request.generation, request.received++),
                           "a token is lost, repeated or another request's");
                }
                demand(reason != kDone || request.received == request.length, "the finish came before the last token");
                demand(reason != kAborted || request.cancelled, "a request ended that nobody cancelled");
            });
        if (end.needs_wake) {
            wake_engine();
        }
        return end.more;
    }

    void drain_all(std::size_t budget = kEverything) {
        while (drain(budget)) {
        }
    }

    /// Sleeps and drains until all requests have ended.
    void serve(std::size_t budget = kEverything) {
        while (consumer.in_use() != 0) {
            rbee::the_eventfd.await();
            drain_all(budget);
        }
    }

    struct Request {
        std::uint32_t generation;
        std::uint32_t length;
        std::uint32_t published;
        std::uint32_t received;
        bool cancelled;
    };

    Shared& shared;
    rbee::Producer producer;
    rbee::Consumer consumer;
    Request requests[2] = {};
    std::vector<std::uint32_t> cancelled{};
};

inline std::string name_of(const Shared& shared, const void* place) {
    const rbee::Arena arena = rbee::attach(const_cast<unsigned char*>(shared.memory), sizeof shared.memory);
    const auto is = [place](const void* word) { return place == word; };
    for (std::uint32_t ring = 0; ring < 2; ++ring) {
        const std::string number = std::to_string(ring);
        for (std::uint32_t i = 0; i < kCapacity; ++i) {
            if (is(arena.ring(ring) + i)) {
                return "record " + std::to_string(i) + " of ring " + number;
            }
        }
        if (is(&arena.tails[ring]) || is(&arena.heads[ring]) || is(&arena.finish[ring])) {
            return (is(&arena.tails[ring]) ? "tail " : is(&arena.heads[ring]) ? "head " : "finish ") + number;
        }
        if (is(&arena.cancel[ring]) || is(&arena.generations[ring])) {
            return (is(&arena.cancel[ring]) ? "cancel " : "generation ") + number;
        }
    }
    return is(&arena.ready[0])                     ? "ready bits"
           : is(&arena.fixed->doorbell.word)       ? "doorbell"
           : is(&arena.fixed->wait.engine_waiting) ? "wait word"
           : is(&rbee::the_eventfd)                ? "eventfd"
           : is(&shared.submitted)                 ? "Submit"
           : is(&shared.wakes)                     ? "Wake"
                                                   : "?";
}

using Part = void (*)(World&);

/// A program of one engine and one server; `prepare` brings the world into the state where they start.
inline std::function<Program()> scenario(Part prepare, Part engine, Part server,
                                         std::uint32_t first_index = kWrapping) {
    const auto shared = std::make_shared<Shared>(first_index);
    return [=] {
        const auto world = std::make_shared<World>(*shared);
        prepare(*world);
        Program program;
        program.threads = {[=] { engine(*world); }, [=] { server(*world); }};
        program.name_of = [=](const void* place) { return name_of(*shared, place); };
        return program;
    };
}

}  // namespace model
