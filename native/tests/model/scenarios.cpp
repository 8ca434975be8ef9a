// What an engine and a server may do at the same time: steps, sleeps, full rings, cancels and reuse.
//
// Owns the order in which each side acts. Does not know how it acts, or what is checked: see world.h.

#include "cases.h"
#include "world.h"

namespace model {
namespace {

/// The server sleeps, is woken, drains and arms beside two steps, the last with the finish.
std::function<Program()> two_steps() {
    return scenario([](World& w) { w.start(2); },
                    [](World& w) {
                        w.commit({0});
                        w.commit({0}, {0});
                    },
                    [](World& w) { w.serve(); });
}

/// A finish without tokens comes after the last.
std::function<Program()> three_steps() {
    return scenario([](World& w) { w.start(2); },
                    [](World& w) {
                        w.commit({0});
                        w.commit({0});
                        w.commit({}, {0});
                    },
                    [](World& w) { w.serve(); });
}

/// Each step must arrive by itself: the engine goes on only when the server has received what is there.
template <std::uint32_t steps>
std::function<Program()> steps_without_successor() {
    return scenario([](World& w) { w.start(steps); },
                    [](World& w) {
                        for (std::uint32_t step = 0; step < steps; ++step) {
                            w.commit({0});
                        }
                        w.shared.wakes.await();  // from the server below, once it has them all
                        w.commit({}, {0});
                    },
                    [](World& w) {
                        while (w.requests[0].received != steps) {
                            rbee::the_eventfd.await();
                            w.drain_all();
                        }
                        w.wake_engine();
                        w.serve();
                    });
}

/// One step for two rings, which then end in different steps; the server can take one record at a time.
std::function<Program()> two_rings() {
    return scenario(
        [](World& w) {
            w.start(2);
            w.start(1);
        },
        [](World& w) {
            w.commit({0, 1}, {1});
            w.commit({0}, {0});
        },
        [](World& w) { w.serve(1); });
}

/// The ring fills up, and the engine sleeps until the server has made space.
template <std::uint32_t length, std::size_t budget, std::uint32_t first_index>
std::function<Program()> full_ring() {
    return scenario([](World& w) { w.start(length); }, [](World& w) { w.publish_with_backpressure(); },
                    [](World& w) { w.serve(budget); }, first_index);
}

/// The engine falls asleep twice beside open rings, and only their cancels can end them. Between its sleeps it steps.
std::function<Program()> two_cancels() {
    return scenario(
        [](World& w) {
            w.start(1);
            w.start(1);
        },
        [](World& w) {
            for (std::uint32_t ended = 0; ended < 2;) {
                w.producer.take_cancelled(w.cancelled);
                if (w.cancelled.size() == ended) {
                    w.sleep_unless([&w, ended] {
                        w.producer.take_cancelled(w.cancelled);
                        return w.cancelled.size() != ended;
                    });
                }
                for (; ended < w.cancelled.size(); ++ended) {
                    w.commit({}, {w.cancelled[ended]}, kAborted);
                }
            }
        },
        [](World& w) {
            w.cancel(0);
            w.cancel(1);
            w.serve();
        });
}

/// A ring goes to its next request as soon as the server has seen its finish; the ready bit of the last step may come
/// after that.
std::function<Program()> reuse() {
    return scenario([](World& w) { w.start(2); },
                    [](World& w) {
                        w.commit({0});
                        w.commit({0}, {0});
                        w.wait_for_submission(2);
                        w.commit({0}, {0});
                    },
                    [](World& w) {
                        w.serve();
                        w.submit(1);
                        w.serve();
                    });
}

/// A cancel beside the end of its request; the next request in the ring must not be hit by it.
std::function<Program()> late_cancel() {
    return scenario([](World& w) { w.start(1); },
                    [](World& w) {
                        const bool cancelled = w.is_cancelled(0);
                        w.commit({}, {0}, cancelled ? kAborted : kFailed);
                        w.cancelled.clear();
                        w.wait_for_submission(2);
                        demand(!w.is_cancelled(0), "a cancel hit the next request");
                        w.commit({0}, {0});
                    },
                    [](World& w) {
                        w.cancel(0);
                        w.serve();
                        w.submit(1);
                        w.serve();
                    });
}

/// A cancel while the engine publishes, or sleeps because its ring is full or because nothing is left.
template <std::uint32_t length>
std::function<Program()> cancel() {
    return scenario([](World& w) { w.start(length); },
                    [](World& w) {
                        const auto has_space = [&w] {
                            return w.requests[0].published != w.requests[0].length && w.producer.free_space(0) != 0;
                        };
                        while (!w.is_cancelled(0)) {
                            if (has_space()) {
                                w.commit({0});
                            } else {
                                w.sleep_unless([&] { return w.is_cancelled(0) || has_space(); });
                            }
                        }
                        w.commit({}, {0}, kAborted);
                    },
                    [](World& w) {
                        rbee::the_eventfd.await();
                        w.drain_all();
                        w.cancel(0);
                        w.serve();
                    });
}

/// The server drains before the first step, and once more while armed, because a ring was resumed.
std::function<Program()> drains_of_its_own_accord() {
    return scenario([](World& w) { w.start(2); },
                    [](World& w) {
                        w.commit({0});
                        w.commit({0}, {0});
                    },
                    [](World& w) {
                        w.consumer.pause(0);
                        w.drain_all();
                        if (w.consumer.resume(0)) {
                            w.drain_all();
                        }
                        w.serve();
                    });
}

/// The server looks without sleeping for a while, and then goes to sleep.
std::function<Program()> polls_then_sleeps() {
    return scenario([](World& w) { w.start(2); },
                    [](World& w) {
                        w.commit({0});
                        w.commit({0}, {0});
                    },
                    [](World& w) {
                        for (int turn = 0; turn < 2; ++turn) {
                            if (w.consumer.poll(0)) {
                                w.drain(kEverything, rbee::Then::keep_polling);
                                w.consumer.silence_doorbell();
                            }
                        }
                        w.drain_all();
                        w.serve();
                    });
}

}  // namespace

const Case kScenarios[] = {{"core: two steps beside the arming", false, two_steps},
                           {"core: three steps beside the arming", false, three_steps},
                           {"core: a step without successor", false, steps_without_successor<1>},
                           {"core: two steps without successor", false, steps_without_successor<2>},
                           {"core: two rings, one record at a time", false, two_rings},
                           {"core: drains of its own accord", false, drains_of_its_own_accord},
                           {"core: polls, then sleeps", false, polls_then_sleeps},
                           {"core: two cancels beside the falling asleep", false, two_cancels},
                           {"core: reuse of a ring", false, reuse},
                           {"core: late cancel", false, late_cancel},
                           {"core: cancel beside a step", false, cancel<1>},
                           {"core: full ring, indices from 0", false, full_ring<3, kEverything, 0>},
                           {"core: full ring, wrapping around", false, full_ring<3, kEverything, kWrapping>},
                           {"core: full ring, one record at a time", false, full_ring<3, 1, kWrapping>},
                           {"core: cancel beside two steps", false, cancel<2>},
                           {"thorough: cancel beside a full ring", false, cancel<3>},
                           {"thorough: full ring, four tokens", false, full_ring<4, kEverything, kWrapping>},
                           {nullptr, false, nullptr}};

}  // namespace model
