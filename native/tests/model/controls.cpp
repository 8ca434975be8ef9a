// Protocols that are known to lose wakeups, beside what repairs them: a check that finds nothing wrong with them would
// find nothing wrong with the core either.

#include <memory>

#include "cases.h"
#include "rbee/platform.h"

namespace model {
namespace {

constexpr auto kRelaxed = std::memory_order_relaxed;
constexpr auto kAcquire = std::memory_order_acquire;
constexpr auto kRelease = std::memory_order_release;
constexpr std::uint32_t kSteps = 2;
constexpr int kAnyFd = 0;

struct Words {
    rbee::Word<std::uint32_t> published{0};
    rbee::Word<std::uint32_t> asleep{0};
};

template <typename Engine, typename Server>
std::function<Program()> between(Engine engine, Server server) {
    const auto words = std::make_shared<Words>();
    return [=] {
        Program program;
        program.threads = {[=] { engine(*words); }, [=] { server(*words); }};
        program.name_of = [words](const void* place) {
            return place == &words->published ? "published" : place == &words->asleep ? "asleep" : "eventfd";
        };
        return program;
    };
}

/// The usual flag (Dekker): each side writes its own word and looks at the other's. Without a fence between the two,
/// both may see the past: liburing #541, SPDK #3178, cloud-hypervisor #2179.
template <bool fenced>
std::function<Program()> dekker() {
    const auto fence = [] {
        if (fenced) {
            perform({Kind::fence});
        }
    };
    return between(
        [fence](Words& words) {
            for (std::uint32_t step = 1; step <= kSteps; ++step) {
                words.published.store(step, kRelease);
                fence();
                if (words.asleep.load(kRelaxed) == 1) {
                    rbee::add_to_eventfd(kAnyFd);
                }
            }
        },
        [fence](Words& words) {
            for (std::uint32_t seen = 0; seen != kSteps;) {
                words.asleep.store(1, kRelaxed);
                fence();
                if (words.published.load(kAcquire) == seen) {
                    rbee::the_eventfd.await();
                }
                words.asleep.store(0, kRelaxed);
                rbee::take_eventfd(kAnyFd);
                seen = words.published.load(kAcquire);
            }
        });
}

/// One word and read-modify-writes as in the core, but the eventfd is emptied too late: with it goes the wake of a step
/// that came between the arming and the emptying.
template <bool before_arming>
std::function<Program()> emptying() {
    return between(
        [](Words& words) {
            for (std::uint32_t step = 1; step <= kSteps; ++step) {
                if ((words.published.exchange(step << 1, kRelease) & 1) != 0) {
                    rbee::add_to_eventfd(kAnyFd);
                }
            }
        },
        [](Words& words) {
            for (std::uint32_t seen = 0; seen >> 1 != kSteps;) {
                if (before_arming) {
                    rbee::take_eventfd(kAnyFd);
                }
                std::uint32_t expected = seen = words.published.load(kAcquire);
                const bool armed = words.published.compare_exchange_strong(expected, seen | 1, kRelaxed, kRelaxed);
                if (!before_arming) {
                    rbee::take_eventfd(kAnyFd);
                }
                if (armed && seen >> 1 != kSteps) {
                    rbee::the_eventfd.await();
                }
            }
        });
}

}  // namespace

const Case kControls[] = {{"control: Dekker without fences", true, dekker<false>},
                          {"control: Dekker with fences", false, dekker<true>},
                          {"control: eventfd emptied after arming", true, emptying<false>},
                          {"control: eventfd emptied before arming", false, emptying<true>},
                          {nullptr, false, nullptr}};

}  // namespace model
