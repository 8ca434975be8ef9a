// The stress program's server: submits and cancels requests, drains what the engine publishes, and checks it.
//
// Owns the requests, and the counts of what was wrong. Does not know when the engine steps.

#pragma once

#include <cstdint>
#include <stdexcept>

#include <unistd.h>

#include "rbee/consumer.h"

#include "check.h"
#include "traffic.h"

namespace stress {

class Server {
public:
    Server(const TestArena& memory, int control, std::uint64_t seed)
        : consumer_(memory.attach(), memory.doorbell()),
          doorbell_(memory.doorbell()),
          control_(control),
          random_{seed} {}

    /// Until the engine has ended all requests because its steps are done, or a wakeup was missed.
    void run() {
        while (missed == 0 && (!stopping_ || consumer_.in_use() != 0)) {
            if (!stopping_) {
                submit();
                cancel();
            }
            if (random_.below(512) == 0) {
                look_away();
            }
            if (!drain()) {
                ++sleeps;
                sleep();
            }
        }
    }

    const rbee::FixedPart& fixed() const { return consumer_.fixed(); }

    std::uint64_t sleeps = 0, missed = 0, lost = 0, repeated = 0, foreign = 0, received = 0;
    std::uint32_t requests = 0;

private:
    struct Request {
        std::uint32_t number;
        std::uint32_t length;
        std::uint32_t received;
        bool open;
        bool cancelled;
    };

    void send(const Submission& submission) {
        if (write(control_, &submission, sizeof submission) != sizeof submission) {
            throw std::runtime_error("the engine is gone");
        }
    }

    /// Keeps some requests open, now few and now many.
    void submit() {
        if (random_.below(4'096) == 0) {
            max_open_ = 1 + random_.below(random_.below(2) == 0 ? 3 : kRings);
        }
        rbee::Consumer::Assigned assigned{};
        while (consumer_.in_use() < max_open_ && consumer_.assign(assigned)) {
            const std::uint32_t length = 1 + random_.below(random_.below(2) == 0 ? 8 : 200);
            open_[assigned.ring] = {requests, length, 0, true, false};
            send({assigned.ring, assigned.generation, requests++, length});
        }
    }

    void cancel() {
        const std::uint32_t ring = random_.below(kRings);
        if (open_[ring].open && !open_[ring].cancelled && random_.below(64) == 0) {
            open_[ring].cancelled = true;
            if (consumer_.cancel(ring)) {
                send({});
            }
        }
    }

    /// Is slow for once. On one core, where every wakeup hands the core over, only now do steps meet a server that is
    /// awake, and rings fill.
    void look_away() {
        for (int turn = 0; turn < 32; ++turn) {
            rbee::give_way();
        }
    }

    /// False if there is nothing to do but sleep.
    bool drain() {
        bool ended = false;
        const rbee::DrainEnd end =
            consumer_.drain(random_.below(4) == 0 ? 1 + random_.below(64) : 4'096, rbee::Then::arm,
                            [&](std::uint32_t ring, const rbee::Records& records, rbee::FinishCode reason) {
                                Request& request = open_[ring];
                                for (std::uint32_t i = 0; i < records.size(); ++i) {
                                    check(request, records[i].token_id);
                                }
                                if (reason != 0) {
                                    ended = true;
                                    stopping_ = stopping_ || reason == kStopped;
                                    lost += reason == kLength ? request.length - request.received : 0;
                                    foreign += reason == kAborted && !request.cancelled;
                                    request.open = false;
                                }
                            });
        if (end.needs_wake) {
            send({});
        }
        return end.more || ended;
    }

    void check(Request& request, std::uint32_t got) {
        ++received;
        const std::uint32_t expected = token(request.number, request.received);
        if (got == expected) {
            ++request.received;
        } else if (!request.open || got >> 12 != expected >> 12) {
            ++foreign;
        } else if (got > expected) {
            lost += got - expected;
            request.received += got - expected + 1;
        } else {
            ++repeated;
        }
    }

    void sleep() {
        while (!sleep_on(doorbell_, kPatienceMs)) {
            // Published behind an armed doorbell, and one second later still not rung.
            consumer_.find_stale();
            if (!sleep_on(doorbell_, 1'000) && consumer_.find_stale()) {
                ++missed;
                return;
            }
        }
    }

    rbee::Consumer consumer_;
    int doorbell_;
    int control_;
    Random random_;
    Request open_[kRings] = {};
    std::size_t max_open_ = kRings;
    bool stopping_ = false;
};

}  // namespace stress
