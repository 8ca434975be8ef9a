// The compute pool: every chunk exactly once and not before its phase, whatever the threads are held up by; sleep, wake
// and end. Chunks write and read plain memory, so that ThreadSanitizer sees an order that is missing, and a plan's
// memory is gone as soon as its run has returned, so that AddressSanitizer reports a late access.

#include <algorithm>
#include <atomic>
#include <cstring>
#include <exception>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include <csignal>
#include <pthread.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "check.h"
#include "rbee/platform.h"
#include "rbee_kernels/thread_pool.h"
#include "threads.h"

namespace {

using rbee::kernels::ThreadPool;

/// Waits for something that other threads do; false when patience ends.
template <typename Condition>
bool comes_true(Condition condition) {
    const std::uint64_t end = rbee::monotonic_ns() + kPatienceMs * 1'000'000ULL;
    while (!condition()) {
        if (rbee::monotonic_ns() > end) {
            return false;
        }
        rbee::give_way();
    }
    return true;
}

/// Phases of random sizes that check each other.
class Plan {
public:
    Plan(Random& random, std::size_t threads, std::uint32_t max_phases, std::uint32_t max_chunks)
        : phases_(random.below(max_phases + 1)), busy_(threads) {
        for (Phase& phase : phases_) {
            const std::uint32_t kind = random.below(4);
            phase.size = kind == 0 ? 0 : kind == 1 ? 1 : random.below(max_chunks + 1);
            num_chunks_ += phase.size;
        }
    }
    std::size_t num_phases() const { return phases_.size(); }
    std::size_t num_chunks(std::size_t phase) {
        // Called for one phase after the other, when all chunks of those before are done.
        wrong_ += phase != asked_++;
        wrong_ += phase > 0 && !is_done(phase - 1);
        phases_[phase].done.reset(new std::uint32_t[phases_[phase].size]());
        return phases_[phase].size;
    }
    void run(std::size_t phase, std::size_t chunk, std::size_t thread) {
        if (phase >= phases_.size() || chunk >= phases_[phase].size || thread >= busy_.size()) {
            ++wrong_;
            return;
        }
        wrong_ += busy_[thread].exchange(true);
        wrong_ += phase + 1 != asked_;
        wrong_ += phase > 0 && !is_done(phase - 1);
        wrong_ += thread == 0 && std::this_thread::get_id() != caller_;
        ++phases_[phase].done[chunk];
        ++runs_;
        busy_[thread] = false;
    }
    /// How many chunks there were; the test fails if one was not done, or twice, or at the wrong time.
    std::uint64_t check() const {
        CHECK(wrong_ == 0);
        CHECK(asked_ == phases_.size());
        for (std::size_t phase = 0; phase < phases_.size(); ++phase) {
            CHECK(is_done(phase));
        }
        CHECK(runs_ == num_chunks_);
        return num_chunks_;
    }

private:
    struct Phase {
        std::uint32_t size = 0;
        std::unique_ptr<std::uint32_t[]> done;
    };
    bool is_done(std::size_t phase) const {
        bool done = true;
        for (std::uint32_t chunk = 0; chunk < phases_[phase].size; ++chunk) {
            done &= phases_[phase].done[chunk] == 1;
        }
        return done;
    }

    std::vector<Phase> phases_;
    std::vector<std::atomic<bool>> busy_;  // by thread
    const std::thread::id caller_ = std::this_thread::get_id();
    std::uint64_t num_chunks_ = 0;
    std::size_t asked_ = 0;  // plain: written between phases
    std::atomic<std::uint64_t> runs_{0};
    std::atomic<int> wrong_{0};
};

/// Runs plans until so many chunks are done.
void run_plans(ThreadPool& pool, Random& random, std::uint64_t num_chunks, std::uint32_t max_phases = 20) {
    while (num_chunks > 0) {
        const auto plan = std::make_unique<Plan>(random, pool.threads(), max_phases, 20);
        pool.run(*plan);
        num_chunks -= std::min(num_chunks, plan->check());
    }
}

/// Has every thread of the pool do a chunk of one phase at the same time, and calls function(thread) in it. Fails if a
/// worker does not come.
template <typename Function>
void on_every_thread(ThreadPool& pool, Function function) {
    std::atomic<std::uint64_t> there{0};
    const std::uint64_t all = (std::uint64_t{1} << pool.threads()) - 1;
    pool.for_each(pool.threads(), [&](std::size_t, std::size_t thread) {
        function(thread);
        there |= std::uint64_t{1} << thread;
        comes_true([&] { return there == all; });
    });
    CHECK(there == all);
}

/// A worker, as the kernel identifies it.
struct Worker {
    explicit Worker(ThreadPool& pool) {
        on_every_thread(pool, [&](std::size_t thread) {
            if (thread == 1) {
                id = static_cast<int>(syscall(SYS_gettid));
                handle = pthread_self();
            }
        });
    }
    std::string file(const char* name) const {
        const std::string path = "/proc/self/task/" + std::to_string(id) + "/" + name;
        std::FILE* file = std::fopen(path.c_str(), "r");
        CHECK(file != nullptr);
        char text[4096];
        const std::size_t size = std::fread(text, 1, sizeof text, file);
        std::fclose(file);
        return {text, size};
    }
    bool asleep() const {
        const std::string stat = file("stat");
        return stat[stat.rfind(')') + 2] == 'S';
    }
    /// How often it has gone to sleep.
    long sleeps() const {
        const std::string status = file("status");
        const char* const name = "\nvoluntary_ctxt_switches:";
        return std::atol(status.c_str() + status.find(name) + std::strlen(name));
    }
    int id;
    pthread_t handle;
};

/// A signal's handler in which threads stay, so that they are held up wherever they are.
class Handler {
public:
    explicit Handler(void (*function)(int)) {
        struct sigaction action{};
        action.sa_handler = function;
        action.sa_flags = SA_RESTART;
        sigaction(SIGUSR1, &action, &before_);
    }
    ~Handler() {
        held = false;
        sigaction(SIGUSR1, &before_, nullptr);
    }

    static void stay_a_while(int) {
        static std::atomic<unsigned> turn{0};
        const timespec nap{0, static_cast<long>(turn++ % 8) * 50'000};
        nanosleep(&nap, nullptr);
    }
    static void stay_while_held(int) {
        is_held = true;
        while (held) {
            rbee::give_way();
        }
        is_held = false;
    }
    static inline std::atomic<bool> held{false};
    static inline std::atomic<bool> is_held{false};

private:
    struct sigaction before_{};
};

void test_sizes() {
    CHECK_THROWS(std::invalid_argument, ThreadPool(0));
    CHECK_THROWS(std::invalid_argument, ThreadPool(ThreadPool::kMaxThreads + 1));
    CHECK(ThreadPool(1).threads() == 1);
    CHECK(ThreadPool(5).threads() == 5);
}

void test_chunks() {
    Random random{71};
    for (const std::size_t threads : {1U, 2U, 2U, 3U}) {
        ThreadPool pool(threads);
        run_plans(pool, random, 500'000);
    }
}

void test_tiny_runs() {
    // Most of them are over before a worker has noticed, so that it comes late to them and into the next.
    Random random{72};
    ThreadPool pool(2);
    run_plans(pool, random, 300'000, 2);
}

void test_many_threads() {
    Random random{73};
    ThreadPool pool(9);
    run_plans(pool, random, 100'000);
}

void test_one_core() {
    // In a thread of its own, because workers inherit what they may run on.
    run_roles(
        [](const std::atomic<bool>&) {
            cpu_set_t cores, one;
            CHECK(sched_getaffinity(0, sizeof cores, &cores) == 0);
            CPU_ZERO(&one);
            for (int core = 0; CPU_COUNT(&one) == 0; ++core) {
                if (CPU_ISSET(core, &cores)) {
                    CPU_SET(core, &one);
                }
            }
            CHECK(sched_setaffinity(0, sizeof one, &one) == 0);
            Random random{74};
            ThreadPool pool(3);
            run_plans(pool, random, 50'000);
        },
        [](const std::atomic<bool>&) {});
}

void test_slow_chunks() {
    Random random{75};
    ThreadPool pool(3);
    for (int i = 0; i < 30; ++i) {
        const std::uint32_t seed = random.below(1000);
        std::atomic<std::uint32_t> done{0};
        pool.for_each(20, [&](std::size_t chunk, std::size_t) {
            const timespec nap{0, ((seed + static_cast<long>(chunk)) % 7) * 100'000};
            nanosleep(&nap, nullptr);
            ++done;
        });
        CHECK(done == 20);
    }
}

void test_held_up_anywhere() {
    const Handler handler(Handler::stay_a_while);
    Random random{76};
    ThreadPool pool(3);
    std::vector<pthread_t> handles(pool.threads());
    on_every_thread(pool, [&](std::size_t thread) { handles[thread] = pthread_self(); });
    std::atomic<bool> through{false};
    std::thread disturber([&] {
        Random choice{77};
        while (!through) {
            pthread_kill(handles[choice.below(3)], SIGUSR1);
            const timespec nap{0, static_cast<long>(choice.below(100)) * 1000};
            nanosleep(&nap, nullptr);
        }
    });
    std::exception_ptr error;
    try {
        run_plans(pool, random, 200'000, 5);
    } catch (...) {
        error = std::current_exception();
    }
    through = true;
    disturber.join();
    if (error) {
        std::rethrow_exception(error);
    }
}

void test_nobody_waits_for_a_thread() {
    Random random{78};
    ThreadPool pool(2);
    const Worker worker(pool);
    const Handler handler(Handler::stay_while_held);
    for (int i = 0; i < 50; ++i) {
        Handler::held = true;
        pthread_kill(worker.handle, SIGUSR1);  // while it looks for work, or sleeps
        CHECK(comes_true([&] {
            run_plans(pool, random, 1);  // ThreadSanitizer handles no signal in a sleep that it does not intercept
            return Handler::is_held.load();
        }));
        run_plans(pool, random, 500);
        Handler::held = false;  // late by many runs
        run_plans(pool, random, 500);
        CHECK(comes_true([&] {
            run_plans(pool, random, 1);
            return !Handler::is_held;
        }));
    }
}

void test_sleep() {
    ThreadPool pool(2);
    const Worker worker(pool);
    CHECK(worker.file("comm") == "rbee-compute\n");
    for (int i = 0; i < 10; ++i) {
        CHECK(comes_true([&] { return worker.asleep(); }));
        on_every_thread(pool, [](std::size_t) {});
    }
}

void test_runs_about_to_sleep() {
    // Pauses around the time after which a worker falls asleep.
    ThreadPool pool(2);
    for (int i = 0; i < static_cast<int>(repeats(4000, 1000)); ++i) {
        const std::uint64_t end = rbee::monotonic_ns() + 199'500 + static_cast<std::uint64_t>(i % 100) * 30;
        while (rbee::monotonic_ns() < end) {
            rbee::relax_processor();
        }
        on_every_thread(pool, [](std::size_t) {});
    }
}

void test_end() {
    for (int i = 0; i < 200; ++i) {
        const ThreadPool pool(3);  // before workers have begun
    }
    for (int i = 0; i < 200; ++i) {
        ThreadPool pool(3);  // while they look for work
        on_every_thread(pool, [](std::size_t) {});
    }
    for (int i = 0; i < 10; ++i) {
        ThreadPool pool(2);
        const Worker worker(pool);
        CHECK(comes_true([&] { return worker.asleep(); }));
    }
}

void test_several_callers() {
    ThreadPool pool(2);
    const auto call = [&](std::uint64_t seed) {
        return [&pool, seed](const std::atomic<bool>&) {
            Random random{seed};
            run_plans(pool, random, 50'000, 3);
        };
    };
    run_roles(call(79), call(80));
}

}  // namespace

extern const Test kThreadPoolTests[];
const Test kThreadPoolTests[] = {
    {"a pool has 1 to 1024 threads", test_sizes},
    {"every chunk is done once, after the phases before", test_chunks},
    {"who comes late to a run finds the next", test_tiny_runs},
    {"more threads than cores do every chunk once", test_many_threads},
    {"threads on one core do every chunk once", test_one_core},
    {"threads that sleep in a chunk do every chunk once", test_slow_chunks},
    {"threads that are held up anywhere do every chunk once", test_held_up_anywhere},
    {"a thread without a chunk is not waited for", test_nobody_waits_for_a_thread},
    {"a run wakes workers that sleep", test_sleep},
    {"a run beside the falling asleep is never missed", test_runs_about_to_sleep},
    {"a pool ends at any time", test_end},
    {"several callers run one after the other", test_several_callers},
    {nullptr, nullptr},
};
