// Two processes over one arena, for any number of steps: rbee_core_stress [steps [seed]], 10^6 steps by default.
//
// The engine's steps come in bursts, with pauses in which the server falls asleep, and at the very moment when it is
// about to; then nothing comes after a step until it has been read, which would hide that its wakeup was lost. Requests
// come and go in rings that are often full, and some are cancelled. Both sides sleep without a timeout that would help
// them: when nothing has happened for kPatienceMs, the one that sleeps only looks at the words, to distinguish a missed
// wakeup from a slow machine. Prints what it saw as one line of JSON; exit code 1 if anything is wrong.

#include <cinttypes>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include <poll.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#include "check.h"
#include "rbee/consumer.h"
#include "rbee/producer.h"

namespace {

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
std::uint32_t token(std::uint32_t request, std::uint32_t index) { return request << 12 | (index & 0xfff); }

void idle(std::uint32_t turns) {
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
bool sleep_on(int fd, int milliseconds) {
    pollfd waiting{fd, POLLIN, 0};
    return poll(&waiting, 1, milliseconds) == 1;
}

class Engine {
public:
    Engine(const TestArena& memory, int control, std::uint64_t steps, std::uint64_t seed)
        : arena_(memory.attach()),
          producer_(arena_, memory.doorbell()),
          control_(control),
          steps_left_(steps),
          random_{seed} {
        ended_.reserve(kRings);
    }

    /// Until the server closes the control channel.
    void run() {
        for (std::uint32_t turn = 0; turn % 16 != 0 || receive(); ++turn) {
            if (!step()) {
                producer_.arm_wait();
                if (!step()) {
                    ++sleeps;
                    sleep();
                    turn = UINT32_MAX;  // look at the channel next
                }
            }
        }
    }

    std::uint64_t sleeps = 0;
    std::uint64_t missed = 0;

private:
    struct Sequence {
        Submission what;
        std::uint32_t done;
    };

    /// Takes submissions; false at the end of the stream.
    bool receive() {
        Submission submission{};
        ssize_t got;
        while ((got = read(control_, &submission, sizeof submission)) == sizeof submission) {
            if (submission.generation != 0) {
                producer_.open(submission.ring, submission.generation);
                running_.push_back({submission, 0});
            }
        }
        return got != 0;
    }

    void sleep() {
        while (!sleep_on(control_, kPatienceMs)) {
            producer_.take_cancelled(cancelled_);
            bool could_go_on = !cancelled_.empty();
            for (const Sequence& sequence : running_) {
                could_go_on = could_go_on || producer_.free_space(sequence.what.ring) != 0;
            }
            if (could_go_on) {
                ++missed;
                return;
            }
        }
    }

    /// Publishes a token for some sequences, and what has ended; false if there is nothing that it could publish.
    bool step() {
        producer_.take_cancelled(cancelled_);
        rings_.clear();
        tokens_.clear();
        ended_.clear();
        reasons_.clear();
        for (const std::uint32_t ring : cancelled_) {
            end(ring, kAborted);
        }
        cancelled_.clear();
        const std::size_t wanted = 1 + random_.below(4);
        const std::size_t first = running_.empty() ? 0 : random_() % running_.size();
        for (std::size_t i = 0; i < running_.size() && rings_.size() < wanted; ++i) {
            Sequence& sequence = running_[(first + i) % running_.size()];
            const std::uint32_t ring = sequence.what.ring;
            if (steps_left_ == 0 || is_ending(ring)) {
                continue;
            }
            if (producer_.free_space(ring) != 0) {
                rings_.push_back(ring);
                tokens_.push_back(token(sequence.what.request, sequence.done++));
                if (sequence.done == sequence.what.length) {
                    end(ring, kLength);
                }
            }
        }
        for (std::size_t i = 0; steps_left_ == 0 && i < running_.size(); ++i) {
            if (!is_ending(running_[i].what.ring)) {
                end(running_[i].what.ring, kStopped);
            }
        }
        if (rings_.empty() && ended_.empty()) {
            return false;
        }
        if (steps_left_ != 0) {
            --steps_left_;
            wait_for_the_moment();
        }
        producer_.commit(
            {rings_.size(), rings_.data(), tokens_.data(), logprobs_, ended_.size(), ended_.data(), reasons_.data()});
        last_ring_ = rings_.empty() ? last_ring_ : rings_.back();
        for (std::size_t i = 0; !ended_.empty() && i < running_.size();) {
            if (is_ending(running_[i].what.ring)) {
                running_[i] = running_.back();
                running_.pop_back();
            } else {
                ++i;
            }
        }
        return true;
    }

    void end(std::uint32_t ring, rbee::FinishCode reason) {
        ended_.push_back(ring);
        reasons_.push_back(reason);
    }

    bool is_ending(std::uint32_t ring) const {
        for (const std::uint32_t ended : ended_) {
            if (ended == ring) {
                return true;
            }
        }
        return false;
    }

    /// Between a step's preparation and its commit: now nothing, now until the server is at an interesting point.
    /// Nothing else is published meanwhile that could make up for a lost wakeup.
    void wait_for_the_moment() {
        if (turns_ == 0) {
            pace_ = random_.below(4);
            turns_ = 1 + random_.below(pace_ == 0 ? 300 : 8);
            wait_until_read();
        }
        --turns_;
        switch (pace_) {
            case 1:  // it has just taken the last step's ready bits, and is going to look at the rings and to arm
                spin_while([this] { return arena_.ready[0].load(std::memory_order_relaxed) != 0; });
                idle(random_.below(60));
                break;
            case 2:  // it has just read the last step, and is going to arm or to sleep
                wait_until_read();
                idle(random_.below(200));
                break;
            case 3:  // it is falling asleep, or asleep
                wait_until_read();
                idle(random_.below(20'000));
        }
    }

    void wait_until_read() {
        spin_while([this] { return producer_.free_space(last_ring_) != kCapacity; });
    }

    rbee::Arena arena_;
    rbee::Producer producer_;
    int control_;
    std::uint64_t steps_left_;
    Random random_;
    std::vector<Sequence> running_;
    std::vector<std::uint32_t> cancelled_, rings_, tokens_, ended_;
    std::vector<rbee::FinishCode> reasons_;
    const float logprobs_[4] = {};
    std::uint32_t last_ring_ = 0;
    std::uint32_t pace_ = 0;
    std::uint32_t turns_ = 0;  // for which the pace stays
};

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

/// Runs the engine in a process of its own; its result comes through `report`.
pid_t start_engine(const TestArena& memory, const int (&control)[2], const int (&report)[2], std::uint64_t steps,
                   std::uint64_t seed) {
    const pid_t pid = fork();
    if (pid != 0) {
        return pid;
    }
    prctl(PR_SET_PDEATHSIG, SIGKILL);  // it may wait for the server without ever looking at the channel
    close(control[1]);
    int code = 1;
    try {
        Engine engine(memory, control[0], steps, seed);
        engine.run();
        const std::uint64_t said[] = {engine.sleeps, engine.missed};
        code = write(report[1], said, sizeof said) == sizeof said ? 0 : 1;
    } catch (const std::exception& error) {
        std::fprintf(stderr, "engine: %s\n", error.what());
    }
    _exit(code);
}

int stress(std::uint64_t steps, std::uint64_t seed) {
    const TestArena memory(kRings, kCapacity, 0xfffff000);
    int control[2];
    int report[2];
    CHECK(pipe(control) == 0 && pipe(report) == 0 && fcntl(control[0], F_SETFL, O_NONBLOCK) == 0);
    const std::uint64_t start = rbee::monotonic_ns();
    const pid_t engine = start_engine(memory, control, report, steps, seed);
    CHECK(engine != -1);
    close(control[0]);
    close(report[1]);
    Server server(memory, control[1], seed + 1);
    server.run();
    close(control[1]);
    if (server.missed != 0) {
        kill(engine, SIGKILL);  // it may wait for the step that was missed
    }
    std::uint64_t said[2] = {};
    const bool reported = read(report[0], said, sizeof said) == sizeof said;
    int status = 0;
    CHECK(waitpid(engine, &status, 0) == engine);
    const double seconds = static_cast<double>(rbee::monotonic_ns() - start) / 1e9;

    const rbee::EngineLine& counted = server.fixed().engine;
    const auto value = [](const rbee::Word<std::uint64_t>& word) { return word.load(std::memory_order_relaxed); };
    const std::uint64_t missing = value(counted.tokens) - server.received;
    std::printf("{\"steps\": %" PRIu64 ", \"tokens\": %" PRIu64 ", \"requests\": %" PRIu32 ", \"cancels\": %" PRIu64
                ", \"full_rings\": %" PRIu64 ", \"wakes_written\": %" PRIu64 ", \"wakes_elided\": %" PRIu64
                ", \"server_sleeps\": %" PRIu64 ", \"engine_sleeps\": %" PRIu64 ", \"engine_wakes\": %" PRIu64
                ", \"missed_server_wakeups\": %" PRIu64 ", \"missed_engine_wakeups\": %" PRIu64 ", \"lost\": %" PRIu64
                ", \"repeated\": %" PRIu64 ", \"foreign\": %" PRIu64 ", \"seconds\": %.1f}\n",
                value(counted.steps), value(counted.tokens), server.requests, value(server.fixed().server.cancels),
                value(counted.full_ring_pauses), value(counted.wakes_written), value(counted.wakes_elided),
                server.sleeps, said[0], value(server.fixed().server.engine_wakes), server.missed, said[1],
                server.lost + missing, server.repeated, server.foreign, seconds);
    const std::uint64_t wrong = server.missed + said[1] + server.lost + missing + server.repeated + server.foreign;
    return reported && status == 0 && wrong == 0 ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
    const std::uint64_t steps = argc > 1 ? std::strtoull(argv[1], nullptr, 10) : 1'000'000;
    const std::uint64_t seed = argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 0;
    try {
        return stress(steps, seed * 2 + 88172645463325252);
    } catch (const std::exception& error) {
        std::fprintf(stderr, "server: %s\n", error.what());
        return 1;  // the engine ends with its control channel
    }
}
