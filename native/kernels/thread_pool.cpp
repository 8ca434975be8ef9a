#include "rbee_kernels/thread_pool.h"

#include <climits>
#include <stdexcept>
#include <string>

#include <linux/futex.h>
#include <pthread.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "rbee/platform.h"

namespace rbee::kernels {

namespace {

/// In bell_: a worker sleeps, or is about to.
constexpr std::uint32_t kAsleep = 1;

/// How often a thread looks for a chunk before it gives way between two looks: 10 to 50 us, depending on how long a
/// processor's pause is. A longer wait may be for a thread that is not on a core, and this one may be the reason.
constexpr unsigned kEagerLooks = 1000;

/// How long a worker looks for the next run, giving way between two looks, before it sleeps: by then the engine is back
/// from publishing a step's tokens, if there is more to do.
constexpr std::uint64_t kIdleNs = 200'000;

static_assert(sizeof(std::atomic<std::uint32_t>) == sizeof(std::uint32_t) &&
                  std::atomic<std::uint32_t>::is_always_lock_free,
              "futex(2) works on the word itself");

/// Sleeps if the word still has this value. May return at any time.
void futex_wait(std::atomic<std::uint32_t>& word, std::uint32_t value) {
    syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, value, nullptr, nullptr, 0);
}

void futex_wake_all(std::atomic<std::uint32_t>& word) {
    syscall(SYS_futex, &word, FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0);
}

}  // namespace

ThreadPool::ThreadPool(std::size_t threads) {
    if (threads < 1 || threads > kMaxThreads) {
        throw std::invalid_argument("threads is " + std::to_string(threads) + ", but must be between 1 and " +
                                    std::to_string(kMaxThreads) + ".");
    }
    workers_.reserve(threads - 1);
    try {
        for (std::size_t thread = 1; thread < threads; ++thread) {
            workers_.emplace_back(&ThreadPool::work, this, thread);
        }
    } catch (...) {
        stop();
        throw;
    }
}

ThreadPool::~ThreadPool() { stop(); }

void ThreadPool::stop() {
    state_.store(State::kStopping, std::memory_order_relaxed);  // ordered by the bell
    ring();
    for (std::thread& worker : workers_) {
        worker.join();
    }
}

void ThreadPool::run(const Work& work) noexcept {
    const std::lock_guard<std::mutex> lock(one_run_);
    work_ = work;
    phase_ = SIZE_MAX;  // before the first
    // Relaxed: it means nothing but that it is too early to sleep, and there the bell orders it.
    state_.store(State::kRunning, std::memory_order_relaxed);
    if (open_next_phase()) {
        ring();
        run_chunks(0, 0);
        take_part(0);
    }
}

/// What a worker does all its life.
void ThreadPool::work(std::size_t thread) {
    pthread_setname_np(pthread_self(), "rbee-compute");
    std::uint64_t idle_since = monotonic_ns();
    for (;;) {
        // Acquire pairs with the release in ring(). Before the state: else this worker could miss a run that begins
        // between the two looks, and sleep on that run's own bell.
        const std::uint32_t bell = bell_.load(std::memory_order_acquire);
        const State state = state_.load(std::memory_order_relaxed);
        if (state == State::kStopping) {
            return;
        }
        if (state == State::kRunning) {
            take_part(thread);
            idle_since = monotonic_ns();
        } else if (monotonic_ns() - idle_since < kIdleNs) {
            give_way();
        } else {
            sleep_until_rung(bell);
            idle_since = monotonic_ns();
        }
    }
}

/// Does chunks until the run is over.
void ThreadPool::take_part(std::size_t thread) {
    while (await_chunk()) {
        std::uint32_t chunk;
        if (claim(chunk)) {
            run_chunks(chunk, thread);
        }
    }
}

/// True once there seems to be a chunk to claim, false once the run is over.
bool ThreadPool::await_chunk() const {
    for (unsigned looks = 0;; ++looks) {
        if (remaining_.load(std::memory_order_relaxed) > 0) {  // claim() acquires
            return true;
        }
        // Acquire pairs with the release in open_next_phase(), for the caller's sake.
        if (state_.load(std::memory_order_acquire) != State::kRunning) {
            return false;
        }
        if (looks < kEagerLooks) {
            relax_processor();
        } else {
            give_way();
        }
    }
}

/// True: the chunk is the caller's, and what describes its phase stands still until finish_chunk().
bool ThreadPool::claim(std::uint32_t& chunk) {
    std::uint32_t remaining = remaining_.load(std::memory_order_relaxed);
    while (remaining > 0) {
        // Acquire pairs with the release in open_next_phase(). Release is not needed: no thread reads what this thread
        // wrote before it has finished the chunk.
        if (remaining_.compare_exchange_weak(remaining, remaining - 1, std::memory_order_acquire,
                                             std::memory_order_relaxed)) {
            chunk = num_chunks_ - remaining;
            return true;
        }
    }
    return false;
}

/// Does a claimed chunk; and as long as it was the last of its phase, opens the next and does the first of that.
void ThreadPool::run_chunks(std::uint32_t chunk, std::size_t thread) {
    do {
        work_.run(work_.plan, phase_, chunk, thread);
        chunk = 0;
    } while (finish_chunk() && open_next_phase());
}

/// True if it was the last of its phase.
bool ThreadPool::finish_chunk() {
    // Release: this chunk's results, and that what describes the phase was read. Acquire, for the last: all others'.
    return num_chunks_ == 1 || unfinished_.fetch_sub(1, std::memory_order_acq_rel) == 1;
}

/// Opens the next phase that has chunks; the first of them is claimed by that. False if there is none: the run is over,
/// and nothing of it may be touched any more. Only for the thread that has finished a phase, or begins a run.
bool ThreadPool::open_next_phase() {
    while (++phase_ < work_.num_phases) {
        num_chunks_ = static_cast<std::uint32_t>(work_.num_chunks(work_.plan, phase_));
        if (num_chunks_ > 1) {
            unfinished_.store(num_chunks_, std::memory_order_relaxed);
            // Release pairs with the acquire in claim(). No thread can claim before: the phase that is over has left 0.
            remaining_.store(num_chunks_ - 1, std::memory_order_release);
        }
        if (num_chunks_ > 0) {
            return true;
        }
    }
    state_.store(State::kIdle, std::memory_order_release);  // pairs with the acquire in await_chunk()
    return false;
}

/// Has workers look at the state again, also those that sleep.
void ThreadPool::ring() {
    std::uint32_t bell = bell_.load(std::memory_order_relaxed);
    // Release pairs with the acquire in work(). A mark of sleep_until_rung() in between passes it on.
    while (!bell_.compare_exchange_weak(bell, (bell & ~kAsleep) + 2, std::memory_order_release,
                                        std::memory_order_relaxed)) {
    }
    if ((bell & kAsleep) != 0) {
        futex_wake_all(bell_);
    }
}

/// Sleeps, unless it has rung since `bell` was read. May return without a ring.
void ThreadPool::sleep_until_rung(std::uint32_t bell) {
    std::uint32_t expected = bell & ~kAsleep;
    // Relaxed: neither side reads anything because of the mark. If it fails, either another worker has set it, and the
    // futex lets this one sleep too; or it has rung, and the futex does not.
    bell_.compare_exchange_strong(expected, bell | kAsleep, std::memory_order_relaxed);
    futex_wait(bell_, bell | kAsleep);
}

}  // namespace rbee::kernels
