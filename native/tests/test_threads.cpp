// An engine and a server with many requests at once, as threads: every request gets exactly its tokens, with full
// rings, slow readers, cancels, reuse and wrap-around. A lost wakeup is a failure that names the step.

#include <deque>
#include <thread>
#include <vector>

#include "check.h"
#include "rbee/consumer.h"
#include "rbee/producer.h"
#include "threads.h"

namespace {

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
                // Nothing fits: sleep, unless space or a cancel came just before the server saw the announcement.
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
        std::vector<rbee::FinishCode> reasons;
        std::deque<Sequence> left;
        for (Sequence& sequence : running_) {
            const std::uint32_t ring = sequence.what.ring;
            for (const std::uint32_t one : cancelled) {
                sequence.cancelled = sequence.cancelled || one == ring;
            }
            const std::uint32_t burst = 1 + random_.below(2);
            for (std::uint32_t i = 0; i < burst && !sequence.cancelled && sequence.done < sequence.what.length &&
                                      producer_.free_space(ring) > i;
                 ++i) {
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
        : consumer_(memory.attach(), memory.doorbell()),
          doorbell_(memory.doorbell()),
          control_(control),
          max_open_(max_open),
          open_(64) {}

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

    /// Now and then stops reading most of the open rings for some of the engine's steps, or cancels one.
    void misbehave() {
        if (paused_ && is_pause_over()) {
            paused_ = false;
            for (std::uint32_t ring = 0; ring < 64; ++ring) {
                if (open_[ring].length != 0) {
                    consumer_.resume(ring);
                }
            }
        }
        if (!paused_ && random_.below(8) == 0) {
            paused_ = true;
            seen_steps_ = steps();
            paused_until_ = seen_steps_ + 1 + random_.below(20);
            idle_turns_ = 0;
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

    std::uint64_t steps() const { return consumer_.fixed().engine.steps.load(std::memory_order_relaxed); }

    /// The engine's steps end a pause, however the machine shares its cores out; or that it makes none any more,
    /// because all that is left is full or finished.
    bool is_pause_over() {
        const std::uint64_t now = steps();
        idle_turns_ = now == seen_steps_ ? idle_turns_ + 1 : 0;
        seen_steps_ = now;
        if (idle_turns_ != 0) {
            std::this_thread::yield();
        }
        return now >= paused_until_ || idle_turns_ == 200;
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
        return drained_.more || paused_ || !drained_.finishes.empty();
    }

    rbee::Consumer consumer_;
    rbee::Drained drained_;
    int doorbell_;
    int control_;
    std::size_t max_open_;
    std::vector<Request> open_;
    bool paused_ = false;
    std::uint64_t paused_until_ = 0;  // a step of the engine
    std::uint64_t seen_steps_ = 0;
    std::uint32_t idle_turns_ = 0;
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

void many_requests_get_exactly_their_tokens() { exchange_requests(10'000, 64); }

void a_sleeping_engine_is_always_woken() { exchange_requests(5'000, 3); }

}  // namespace

extern const Test kThreadsTests[];
const Test kThreadsTests[] = {{"many requests get exactly their tokens", many_requests_get_exactly_their_tokens},
                              {"a sleeping engine is always woken", a_sleeping_engine_is_always_woken},
                              {nullptr, nullptr}};
