// The stress program's engine: runs the requests that come through the control channel, one step after the other.
//
// Owns the pace: when a step is committed, so that it meets the server at an interesting moment. Does not know what the
// server has received.

#pragma once

#include <cstdint>
#include <vector>

#include <unistd.h>

#include "rbee/producer.h"

#include "check.h"
#include "traffic.h"

namespace stress {

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

}  // namespace stress
