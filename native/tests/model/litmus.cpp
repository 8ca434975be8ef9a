// The explorer on trial: programs whose outcomes under the C++ memory model are known.

#include <memory>

#include "cases.h"
#include "rbee/platform.h"

namespace model {
namespace {

constexpr auto kRelaxed = std::memory_order_relaxed;
constexpr auto kAcquire = std::memory_order_acquire;
constexpr auto kRelease = std::memory_order_release;

/// The words and registers of a litmus test, and the form of its outcome.
struct Bench {
    rbee::Word<std::uint32_t> x{0};
    rbee::Word<std::uint32_t> y{0};
    std::uint32_t data = 0;  // plain
    std::uint32_t registers[4] = {};

    std::string seen(int count) const {
        std::string digits;
        for (int i = 0; i < count; ++i) {
            digits += std::to_string(registers[i]);
        }
        return digits;
    }
};

using Report = std::function<void(const std::string&)>;

/// A program of threads that get the bench, and whose outcome is the first `count` registers.
template <typename... Threads>
std::function<Program()> litmus(const Report& came_out, int count, Threads... threads) {
    const auto bench = std::make_shared<Bench>();
    return [=] {
        for (std::uint32_t& one : bench->registers) {
            one = 0;
        }
        Program program;
        (program.threads.push_back([=] { threads(*bench); }), ...);
        program.at_end = [=] { came_out(bench->seen(count)); };
        return program;
    };
}

template <std::memory_order store, std::memory_order load, bool fenced = false>
std::function<Program()> store_buffering(Report came_out) {
    const auto fence = [] {
        if (fenced) {
            perform({Kind::fence});
        }
    };
    return litmus(
        came_out, 2,
        [=](Bench& b) {
            b.x.store(1, store);
            fence();
            b.registers[0] = b.y.load(load);
        },
        [=](Bench& b) {
            b.y.store(1, store);
            fence();
            b.registers[1] = b.x.load(load);
        });
}

/// Register 0: the flag; register 1: what it announces.
template <std::memory_order store, std::memory_order load>
std::function<Program()> message_passing(Report came_out) {
    return litmus(
        came_out, 2,
        [](Bench& b) {
            b.x.store(1, kRelaxed);
            b.y.store(1, store);
        },
        [](Bench& b) {
            b.registers[0] = b.y.load(load);
            b.registers[1] = b.x.load(kRelaxed);
        });
}

template <std::memory_order store, std::memory_order load>
std::function<Program()> plain_message_passing(Report came_out) {
    return litmus(
        came_out, 1,
        [](Bench& b) {
            rbee::store_plain(b.data, 1u);
            b.y.store(1, store);
        },
        [](Bench& b) {
            b.registers[0] = b.y.load(load);
            if (b.registers[0] == 1 && rbee::load_plain(b.data) != 1) {
                violated("the data are not there");
            }
        });
}

/// The writer must not overwrite what is still being read: the reader gives it back with `store`.
template <std::memory_order store, std::memory_order load>
std::function<Program()> plain_return(Report came_out) {
    return litmus(
        came_out, 0,
        [](Bench& b) {
            rbee::load_plain(b.data);
            b.y.store(1, store);
        },
        [](Bench& b) {
            if (b.y.load(load) == 1) {
                rbee::store_plain(b.data, 1u);
            }
        });
}

/// A second thread changes the released flag, with a read-modify-write or with a store; register 0 sees the change.
template <bool with_store>
std::function<Program()> release_sequence(Report came_out) {
    return litmus(
        came_out, 2,
        [](Bench& b) {
            b.x.store(1, kRelaxed);
            b.y.exchange(1, kRelease);
        },
        [](Bench& b) {
            if (with_store) {
                if (b.y.load(kRelaxed) == 1) {
                    b.y.store(2, kRelaxed);
                }
            } else {
                std::uint32_t one = 1;
                b.y.compare_exchange_strong(one, 2, kRelaxed, kRelaxed);
            }
        },
        [](Bench& b) {
            b.registers[0] = b.y.load(kAcquire);
            b.registers[1] = b.registers[0] == 2 ? b.x.load(kRelaxed) : 1;
        });
}

std::function<Program()> coherence(Report came_out) {
    return litmus(
        came_out, 2,
        [](Bench& b) {
            b.x.store(1, kRelaxed);
            b.x.store(2, kRelaxed);
        },
        [](Bench& b) {
            b.registers[0] = b.x.load(kRelaxed);
            b.registers[1] = b.x.load(kRelaxed);
        });
}

/// Two writers of two words, in opposite order; the registers get what is left at the end.
template <std::memory_order store>
std::function<Program()> two_writers(Report came_out) {
    const auto bench = std::make_shared<Bench>();
    return [=] {
        Program program;
        program.threads = {[=] {
                               bench->x.store(1, kRelaxed);
                               bench->y.store(2, store);
                           },
                           [=] {
                               bench->y.store(1, kRelaxed);
                               bench->x.store(2, store);
                           }};
        program.at_end = [=] {
            came_out(std::to_string(final_value(&bench->x)) + std::to_string(final_value(&bench->y)));
        };
        return program;
    };
}

/// Two readers of two independent writes; 1010 means that they saw them in different orders.
template <bool fenced>
std::function<Program()> independent_reads(Report came_out) {
    const auto both = [](const auto& first, const auto& second, std::uint32_t* seen) {
        seen[0] = first.load(kAcquire);
        if (fenced) {
            perform({Kind::fence});
        }
        seen[1] = second.load(kAcquire);
    };
    const Report only_disagreement = [came_out](const std::string& outcome) {
        came_out(outcome == "1010" ? "disagree" : "agree");
    };
    return litmus(
        only_disagreement, 4, [](Bench& b) { b.x.store(1, kRelease); }, [](Bench& b) { b.y.store(1, kRelease); },
        [both](Bench& b) { both(b.x, b.y, &b.registers[0]); }, [both](Bench& b) { both(b.y, b.x, &b.registers[2]); });
}

std::function<Program()> atomic_increments(Report came_out) {
    return litmus(
        came_out, 2, [](Bench& b) { b.registers[0] = b.x.fetch_add(1, kRelaxed); },
        [](Bench& b) { b.registers[1] = b.x.fetch_add(1, kRelaxed); });
}

/// A comparison may fail with an old value, but never exchange one. First what it found, then what is left.
std::function<Program()> stale_comparison(Report came_out) {
    const auto bench = std::make_shared<Bench>();
    return [=] {
        Program program;
        program.threads = {[=] { bench->x.store(1, kRelaxed); },
                           [=] {
                               bench->registers[0] = 1;
                               bench->x.compare_exchange_strong(bench->registers[0], 2, kRelaxed, kRelaxed);
                           }};
        program.at_end = [=] { came_out(bench->seen(1) + std::to_string(final_value(&bench->x))); };
        return program;
    };
}

/// The one case of load buffering that is modelled: register 0 sees the store behind the fetch_or, register 1 takes the
/// bits without finding it.
template <std::memory_order store, std::memory_order load>
std::function<Program()> unseen_or(Report came_out) {
    return litmus(
        came_out, 2,
        [](Bench& b) {
            b.x.fetch_or(1, kRelease);
            b.y.store(1, store);
        },
        [](Bench& b) {
            b.registers[0] = b.y.load(load);
            b.registers[1] = b.x.exchange(0, kAcquire);
        });
}

/// And its general case, which is not: no load reads a store that has not been made yet.
std::function<Program()> load_buffering(Report came_out) {
    return litmus(
        came_out, 2,
        [](Bench& b) {
            b.registers[0] = b.x.load(kRelaxed);
            b.y.store(1, kRelaxed);
        },
        [](Bench& b) {
            b.registers[1] = b.y.load(kRelaxed);
            b.x.store(1, kRelaxed);
        });
}

constexpr auto kRead = "data race:  is read beside its writing";
constexpr auto kWritten = "data race:  is written beside its reading";

}  // namespace

const Litmus kLitmus[] = {
    {"litmus: store buffering, relaxed", "00 01 10 11", store_buffering<kRelaxed, kRelaxed>},
    {"litmus: store buffering, release and acquire", "00 01 10 11", store_buffering<kRelease, kAcquire>},
    {"litmus: store buffering, fenced", "01 10 11", store_buffering<kRelaxed, kRelaxed, true>},
    {"litmus: message passing, relaxed", "00 01 10 11", message_passing<kRelaxed, kRelaxed>},
    {"litmus: message passing, release only", "00 01 10 11", message_passing<kRelease, kRelaxed>},
    {"litmus: message passing, acquire only", "00 01 10 11", message_passing<kRelaxed, kAcquire>},
    {"litmus: message passing, release and acquire", "00 01 11", message_passing<kRelease, kAcquire>},
    {"litmus: plain message passing, release only", kRead, plain_message_passing<kRelease, kRelaxed>},
    {"litmus: plain message passing, acquire only", kRead, plain_message_passing<kRelaxed, kAcquire>},
    {"litmus: plain message passing, release and acquire", "0 1", plain_message_passing<kRelease, kAcquire>},
    {"litmus: plain return, release only", kWritten, plain_return<kRelease, kRelaxed>},
    {"litmus: plain return, acquire only", kWritten, plain_return<kRelaxed, kAcquire>},
    {"litmus: plain return, release and acquire", "", plain_return<kRelease, kAcquire>},
    {"litmus: release sequence through a read-modify-write", "01 11 21", release_sequence<false>},
    {"litmus: release sequence cut by a store", "01 11 20 21", release_sequence<true>},
    {"litmus: coherence", "00 01 02 11 12 22", coherence},
    {"litmus: two writers, relaxed", "11 12 21 22", two_writers<kRelaxed>},
    {"litmus: independent reads", "agree disagree", independent_reads<false>},
    {"litmus: independent reads, fenced", "agree", independent_reads<true>},
    {"litmus: atomic increments", "01 10", atomic_increments},
    {"litmus: stale comparison", "01 12", stale_comparison},
    {"litmus: unseen fetch_or, relaxed", "00 01 10 11", unseen_or<kRelaxed, kRelaxed>},
    {"litmus: unseen fetch_or, release and acquire", "00 01 11", unseen_or<kRelease, kAcquire>},
    {"litmus: load buffering", "00 01 10", load_buffering},
    {nullptr, nullptr, nullptr}};

}  // namespace model
