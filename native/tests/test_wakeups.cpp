// The two moments at which a wakeup could be lost, hit again and again: the server arming the doorbell beside a step,
// and the engine falling asleep beside a cancel. A lost one is a failure that names the request.

#include <vector>

#include "check.h"
#include "rbee/consumer.h"
#include "rbee/producer.h"
#include "threads.h"

namespace {

/// One request after the other, of two pairs of steps each: the first step of a pair wakes the server, the second comes
/// a random moment later, beside the server's look into the ring, its arming or its sleep. Then the engine waits until
/// the server has read both. Nothing else is in flight that could make up for a lost wakeup, so a lost one stops both.
void a_step_beside_the_arming_is_never_missed() {
    constexpr std::uint32_t kRequests = repeats(40'000, 4'000);
    const TestArena memory(64, 2, 0xffff8000);
    rbee::Producer producer(memory.attach(), memory.doorbell());
    rbee::Consumer consumer(memory.attach(), memory.doorbell());
    std::atomic<std::uint32_t> submitted{0};  // a generation of ring 0, in place of the control channel
    const rbee::EngineLine& counted = consumer.fixed().engine;
    const auto steps_done = [&] { return counted.wakes_written.load() + counted.wakes_elided.load(); };
    run_roles(
        [&](const std::atomic<bool>& stop) {
            Random random{362436069};
            const std::uint32_t ring = 0;
            const float logprob = 0;
            const rbee::FinishCode reason = 1;
            for (std::uint32_t request = 1; request <= kRequests; ++request) {
                while (submitted != request) {
                    if (stop) {
                        return;
                    }
                    std::this_thread::yield();
                }
                producer.open(ring, request);
                for (std::uint32_t step = 0; step < 4; ++step) {
                    producer.commit({1, &ring, &request, &logprob, step == 3 ? 1u : 0u, &ring, &reason});
                    if (step == 1) {
                        while (producer.free_space(ring) != 2 && !stop) {
                            std::this_thread::yield();
                        }
                    } else if (step != 3) {
                        for (volatile std::uint32_t moment = random.below(2'000); moment != 0; moment = moment - 1) {
                        }
                    }
                }
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
                    // These find both steps for certain. On one core the others never do: a step that wakes the server
                    // gives it the core.
                    while (request % 16 == 0 && !stop && steps_done() < 4 * request - 2) {
                        std::this_thread::yield();
                    }
                    do {
                        consumer.drain(16, drained);
                        for (const rbee::Record& record : drained.records) {
                            CHECK(record.token_id == request);
                            ++received;
                        }
                    } while (drained.more);
                }
                CHECK(stop || received == 4);
            }
        });
    CHECK(steps_done() == 4 * kRequests);
    CHECK(counted.wakes_elided.load() >= kRequests / 16);
}

/// A request that never gets a token is cancelled at a random moment beside the engine's falling asleep. Only the
/// cancel can end it.
void a_cancel_beside_the_falling_asleep_is_never_missed() {
    constexpr std::uint32_t kRequests = repeats(20'000, 4'000);
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
            const rbee::FinishCode reason = 3;
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

}  // namespace

extern const Test kWakeupTests[];
const Test kWakeupTests[] = {
    {"a step beside the arming is never missed", a_step_beside_the_arming_is_never_missed},
    {"a cancel beside the falling asleep is never missed", a_cancel_beside_the_falling_asleep_is_never_missed},
    {nullptr, nullptr}};
