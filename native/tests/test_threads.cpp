// Both roles as threads over one mapping, so that ThreadSanitizer sees every pair of accesses, and with the real
// eventfd and poll(). A lost wakeup ends in a failure that names the step after kPatience, never in a hang.

#include <deque>
#include <exception>
#include <thread>
#include <vector>

#include <poll.h>

#include "check.h"
#include "rbee/consumer.h"
#include "rbee/producer.h"

namespace {

constexpr int kPatienceMs = 10'000;

/// True once the descriptor is readable: looks a while without sleeping, because that hits the narrow interleavings far
/// more often, then sleeps like the real thing. False when patience ends.
bool wait_readable(int fd) {
    pollfd waiting{fd, POLLIN, 0};
    for (int i = 0; i < 200; ++i) {
        if (poll(&waiting, 1, 0) == 1) {
            return true;
        }
    }
    return poll(&waiting, 1, kPatienceMs) == 1;
}

/// Runs both roles; the first exception of either ends the test. `stop` tells the other one to give up.
template <typename Engine, typename Server>
void run_roles(Engine engine, Server server) {
    std::atomic<bool> stop{false};
    std::exception_ptr error;
    std::thread thread([&] {
        try {
            engine(stop);
        } catch (...) {
            error = std::current_exception();
            stop = true;
        }
    });
    std::exception_ptr server_error;
    try {
        server(stop);
    } catch (...) {
        server_error = std::current_exception();
        stop = true;
    }
    thread.join();
    for (const std::exception_ptr& failure : {error, server_error}) {
        if (failure) {
            std::rethrow_exception(failure);
        }
    }
}

/// One request after the other, of two steps each: the first wakes the server; the second, which ends the request,
/// comes a random moment later, beside the server's look into the ring, its arming or its sleep. Nothing else is in
/// flight that could make up for a lost wakeup, so a lost one stops both.
void a_step_beside_the_arming_is_never_missed() {
    constexpr std::uint32_t kRequests = 30'000;
    const TestArena memory(64, 2, 0xffff8000);
    rbee::Producer producer(memory.attach(), memory.doorbell());
    rbee::Consumer consumer(memory.attach(), memory.doorbell());
    std::atomic<std::uint32_t> submitted{0};  // a generation of ring 0, in place of the control channel
    run_roles(
        [&](const std::atomic<bool>& stop) {
            Random random{362436069};
            const std::uint32_t ring = 0;
            const float logprob = 0;
            const std::uint8_t reason = 1;
            for (std::uint32_t request = 1; request <= kRequests; ++request) {
                while (submitted != request) {
                    if (stop) {
                        return;
                    }
                    std::this_thread::yield();
                }
                producer.open(ring, request);
                producer.commit({1, &ring, &request, &logprob, 0, nullptr, nullptr});
                for (volatile std::uint32_t moment = random.below(2'000); moment != 0; moment = moment - 1) {
                }
                producer.commit({1, &ring, &request, &logprob, 1, &ring, &reason});
            }
        },
        [&](const std::atomic<bool>& stop) {
            rbee::Drained drained;
            for (std::uint32_t request = 1; request <= kRequests; ++request) {
                rbee::Consumer::Assigned assigned{};
                CHECK(consumer.assign(assigned) && assigned.ring == 0 && assigned.generation == request);
                submitted = request;
                std::uint32_t received = 0;
                while (consumer.in_use() != 0 && !stop) {
                    if (!wait_readable(memory.doorbell())) {
                        throw std::logic_error("missed wakeup: request " + std::to_string(request) + " after " +
                                               std::to_string(received) + " tokens");
                    }
                    do {
                        consumer.drain(16, drained);
                        for (const rbee::Record& record : drained.records) {
                            CHECK(record.token_id == request);
                            ++received;
                        }
                    } while (drained.more);
                }
                CHECK(stop || received == 2);
            }
        });
    const rbee::EngineLine& counted = consumer.fixed().engine;
    CHECK(counted.wakes_written.load() + counted.wakes_elided.load() == 2 * kRequests);
    CHECK(counted.wakes_elided.load() != 0);  // otherwise the interesting moment was never hit
}

std::uint32_t token(std::uint32_t seed, std::uint32_t index) { return (seed * 2654435761u) ^ (index * 40503u); }

/// What goes over the control channel: here a pipe. A record without generation is a Wake.
struct Submission {
    std::uint32_t ring;
    std::uint32_t generation;
    std::uint32_t seed;
    std::uint32_t length;
};

/// An engine with up to 64 sequences that obeys full rings and cancels, and sleeps when it can do nothing.
class Engine {
public:
    Engine(const TestArena& memory, int control) : producer_(memory.attach(), memory.doorbell()), control_(control) {}

    void run(const std::atomic<bool>& stop) {
        while (!stop) {
            if (!receive(false)) {
                return;
            }
            if (!step()) {
                // Nothing fits: sleep, unless space or a cancel came just before the server was told of the sleep.
                producer_.arm_wait();
                if (!step() && !receive(true)) {
                    return;
                }
            }
        }
    }

private:
    struct Sequence {
        Submission what;
        std::uint32_t done = 0;
        bool cancelled = false;
    };

    /// False at the end of the stream.
    bool receive(bool sleep) {
        pollfd waiting{control_, POLLIN, 0};
        if (sleep && !wait_readable(control_)) {
            throw std::logic_error("missed wake of the engine: it slept beside " + std::to_string(running_.size()) +
                                   " sequences after step " + std::to_string(steps_));
        }
        while (poll(&waiting, 1, 0) == 1) {
            Submission submission{};
            if (read(control_, &submission, sizeof submission) != sizeof submission) {
                return false;
            }
            if (submission.generation != 0) {
                producer_.open(submission.ring, submission.generation);
                running_.push_back({submission});
            }
        }
        return true;
    }

    bool step() {
        std::vector<std::uint32_t> cancelled;
        producer_.take_cancelled(cancelled);
        std::vector<std::uint32_t> rings, tokens, finished;
        std::vector<std::uint8_t> reasons;
        std::deque<Sequence> left;
        for (Sequence& sequence : running_) {
            const std::uint32_t ring = sequence.what.ring;
            for (const std::uint32_t one : cancelled) {
                sequence.cancelled = sequence.cancelled || one == ring;
            }
            const std::uint32_t burst = 1 + random_.below(2);
            for (std::uint32_t i = 0; i < burst && !sequence.cancelled && sequence.done < sequence.what.length &&
                                      producer_.free_space(ring) > i; ++i) {
                rings.push_back(ring);
                tokens.push_back(token(sequence.what.seed, sequence.done++));
            }
            if (sequence.cancelled || sequence.done == sequence.what.length) {
                finished.push_back(ring);
                reasons.push_back(sequence.cancelled ? 3 : 2);
            } else {
                left.push_back(sequence);
            }
        }
        running_.swap(left);
        if (rings.empty() && finished.empty()) {
            return false;
        }
        const std::vector<float> logprobs(rings.size(), 1.0f);
        producer_.commit({rings.size(), rings.data(), tokens.data(), logprobs.data(), finished.size(), finished.data(),
                          reasons.data()});
        ++steps_;
        return true;
    }

    rbee::Producer producer_;
    int control_;
    std::deque<Sequence> running_;
    std::uint64_t steps_ = 0;
    Random random_{88172645463325252};
};

/// A server that keeps up to `max_open` requests open, reads some of them late and cancels some.
class Server {
public:
    Server(const TestArena& memory, int control, std::size_t max_open)
        : consumer_(memory.attach(), memory.doorbell()), doorbell_(memory.doorbell()), control_(control),
          max_open_(max_open), open_(64) {}

    void run(std::uint32_t num_requests, const std::atomic<bool>& stop) {
        std::uint32_t submitted = 0;
        while (!stop && (submitted < num_requests || consumer_.in_use() != 0)) {
            rbee::Consumer::Assigned assigned{};
            while (submitted < num_requests && consumer_.in_use() < max_open_ && consumer_.assign(assigned)) {
                open_[assigned.ring] = {submitted, 1 + random_.below(40), 0, false};
                send({assigned.ring, assigned.generation, submitted, open_[assigned.ring].length});
                ++submitted;
            }
            misbehave();
            if (!drain() && !wait_readable(doorbell_)) {
                throw std::logic_error("missed wakeup of the server beside " + std::to_string(consumer_.in_use()) +
                                       " requests after step " +
                                       std::to_string(consumer_.fixed().engine.steps.load(std::memory_order_relaxed)));
            }
        }
        CHECK(stop || consumer_.in_use() == 0);
    }

    const rbee::FixedPart& fixed() const { return consumer_.fixed(); }

private:
    struct Request {
        std::uint32_t seed;
        std::uint32_t length;
        std::uint32_t received;
        bool cancelled;
    };

    void send(const Submission& submission) {
        CHECK(write(control_, &submission, sizeof submission) == sizeof submission);
    }

    /// Now and then stops reading most of the open rings for some turns, or cancels one.
    void misbehave() {
        if (turns_paused_ > 0 && --turns_paused_ == 0) {
            for (std::uint32_t ring = 0; ring < 64; ++ring) {
                if (open_[ring].length != 0) {
                    consumer_.resume(ring);
                }
            }
        }
        if (turns_paused_ == 0 && random_.below(8) == 0) {
            turns_paused_ = 1 + random_.below(100);
            for (std::uint32_t ring = 0; ring < 64; ++ring) {
                if (open_[ring].length != 0 && random_.below(8) != 0) {
                    consumer_.pause(ring);
                }
            }
        }
        const std::uint32_t ring = random_.below(64);
        if (open_[ring].length != 0 && random_.below(16) == 0) {
            open_[ring].cancelled = true;
            if (consumer_.cancel(ring)) {
                send({});
            }
        }
    }

    /// False if there is nothing to do but sleep.
    bool drain() {
        consumer_.drain(1 + random_.below(64), drained_);
        if (drained_.needs_wake) {
            send({});
        }
        std::uint32_t at = 0;
        for (std::size_t i = 0; i < drained_.rings.size(); ++i) {
            Request& request = open_[drained_.rings[i]];
            CHECK(request.length != 0);
            for (; at < drained_.ends[i]; ++at) {
                CHECK(drained_.records[at].token_id == token(request.seed, request.received++));
            }
            if (drained_.finishes[i] == 2) {
                CHECK(request.received == request.length);
            }
            if (drained_.finishes[i] != 0) {
                CHECK(drained_.finishes[i] == 2 || request.cancelled);
                request = {};
            }
        }
        return drained_.more || turns_paused_ != 0 || !drained_.finishes.empty();
    }

    rbee::Consumer consumer_;
    rbee::Drained drained_;
    int doorbell_;
    int control_;
    std::size_t max_open_;
    std::vector<Request> open_;
    std::uint32_t turns_paused_ = 0;
    Random random_{2463534242};
};

void exchange_requests(std::uint32_t num_requests, std::size_t max_open) {
    const TestArena memory(64, 4, 0xfffffff0);
    int control[2];
    CHECK(pipe(control) == 0);
    Engine engine(memory, control[0]);
    Server server(memory, control[1], max_open);
    run_roles([&](const std::atomic<bool>& stop) { engine.run(stop); },
              [&](const std::atomic<bool>& stop) {
                  try {
                      server.run(num_requests, stop);
                  } catch (...) {
                      close(control[1]);  // ends the engine
                      throw;
                  }
                  close(control[1]);
              });
    close(control[0]);
    CHECK(server.fixed().engine.full_ring_pauses.load() != 0);
    CHECK(max_open > 4 || server.fixed().server.engine_wakes.load() != 0);
}

/// A request that never gets a token is cancelled at a random moment beside the engine's falling asleep. Only the cancel
/// can end it.
void a_cancel_beside_the_falling_asleep_is_never_missed() {
    constexpr std::uint32_t kRequests = 20'000;
    const TestArena memory(64, 2);
    const rbee::Arena arena = memory.attach();
    rbee::Producer producer(memory.attach(), memory.doorbell());
    rbee::Consumer consumer(memory.attach(), memory.doorbell());
    std::atomic<std::uint32_t> submitted{0};
    const int wakes = eventfd(0, EFD_NONBLOCK);  // the Wake records of the control channel
    const auto spend_a_moment = [](Random& random) {
        for (volatile std::uint32_t moment = random.below(500); moment != 0; moment = moment - 1) {
        }
    };
    run_roles(
        [&](const std::atomic<bool>& stop) {
            Random random{362436069};
            const std::uint32_t ring = 0;
            const std::uint8_t reason = 3;
            std::vector<std::uint32_t> cancelled;
            for (std::uint32_t request = 1; request <= kRequests; ++request) {
                while (submitted != request) {
                    if (stop) {
                        return;
                    }
                    std::this_thread::yield();
                }
                producer.open(ring, request);
                spend_a_moment(random);
                while (cancelled.empty() && !stop) {  // a Wake of the request before may come late and mean nothing
                    producer.arm_wait();
                    producer.take_cancelled(cancelled);
                    if (cancelled.empty()) {
                        if (!wait_readable(wakes)) {
                            throw std::logic_error("missed wake of the engine: request " + std::to_string(request) +
                                                   " was cancelled while it fell asleep");
                        }
                        rbee::silence(wakes);
                        producer.take_cancelled(cancelled);
                    }
                }
                CHECK(stop || cancelled == std::vector<std::uint32_t>{ring});
                cancelled.clear();
                producer.commit({0, nullptr, nullptr, nullptr, 1, &ring, &reason});
            }
        },
        [&](const std::atomic<bool>& stop) {
            Random random{521288629};
            rbee::Drained drained;
            for (std::uint32_t request = 1; request <= kRequests && !stop; ++request) {
                rbee::Consumer::Assigned assigned{};
                CHECK(consumer.assign(assigned) && assigned.ring == 0);
                submitted = request;
                spend_a_moment(random);
                while (request % 16 == 0 && !stop && arena.fixed->wait.engine_waiting == 0) {
                    std::this_thread::yield();  // these find it asleep for certain
                }
                if (consumer.cancel(0)) {
                    rbee::wake(wakes);
                }
                while (consumer.in_use() != 0 && !stop) {
                    if (!wait_readable(memory.doorbell())) {
                        throw std::logic_error("missed wakeup: the end of request " + std::to_string(request));
                    }
                    do {
                        consumer.drain(1, drained);
                    } while (drained.more);
                }
            }
        });
    close(wakes);
    CHECK(consumer.fixed().server.engine_wakes.load() >= kRequests / 16);
}

void many_requests_get_exactly_their_tokens() { exchange_requests(10'000, 64); }

void a_sleeping_engine_is_always_woken() { exchange_requests(5'000, 3); }

}  // namespace

extern const Test kThreadsTests[];
const Test kThreadsTests[] = {
    {"a step beside the arming is never missed", a_step_beside_the_arming_is_never_missed},
    {"a cancel beside the falling asleep is never missed", a_cancel_beside_the_falling_asleep_is_never_missed},
    {"many requests get exactly their tokens", many_requests_get_exactly_their_tokens},
    {"a sleeping engine is always woken", a_sleeping_engine_is_always_woken},
    {nullptr, nullptr}};
