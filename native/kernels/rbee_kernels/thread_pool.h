// The compute threads of a step: its phases one after the other, the chunks of a phase side by side.
//
// Owns the threads, which of them computes which chunk, and the end of a phase. Does not know what is computed.
//
// The cores are not ours alone: at any moment the kernel may take a thread off its core for the server's sake. So
// a thread waits for no other, only for a chunk in work. A phase is through when its chunks are, and whichever
// thread finishes the last of them, the calling one or a worker, opens the next phase.
//
// Why a straggler does no harm: `remaining_` is how many chunks of the current phase no thread has claimed. A claim is
// a compare-and-swap that makes it one less, and a thread that succeeds has a chunk of the phase that is current at
// that moment, however long ago it looked at the word first and whatever it meant then. Until it has finished the
// chunk, the phase cannot end, nor can the run, and what describes them stands still. Before a claim it looks at atomic
// words of the pool and at nothing else, in particular not at the plan. So a thread that comes back late finds work of
// now or none, and the caller waits for no thread that holds no chunk.
//
// What the orders are for:
//
// | release                                  | acquire                  | so that
// |------------------------------------------|--------------------------|----------------------------------------------
// | remaining_, set by open_next_phase()     | claim()                  | the claimer reads its phase's description and
// |                                          |                          | what earlier phases computed
// | unfinished_, decreased by finish_chunk() | finish_chunk(), the last | the opener reads what others computed, and
// |                                          |                          | overwrites the last phase's description only
// |                                          |                          | after they have read it
// | state_, set idle by open_next_phase()    | await_chunk()            | the caller returns with everything computed
// | bell_, changed by ring()                 | work()                   | a worker with a run's bell reads its state
//
// In the first two, others may claim or finish chunks in between: read-modify-writes, which hand on what was released
// before them.
//
// No wakeup is lost: a worker reads bell_, finds the pool idle, and marks bell_ as slept on, by a compare-and-swap from
// what it has read. ring() changes bell_ after the state is set. Both are read-modify-writes of one word, so one comes
// first: if it is the mark, ring() sees it and wakes; if it is ring(), the mark fails and the worker looks again.

#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

namespace rbee::kernels {

class ThreadPool {
public:
    static constexpr std::size_t kMaxThreads = 1024;

    /// The calling thread of `run` and threads - 1 workers. std::invalid_argument if there are none or more than
    /// kMaxThreads, std::system_error if the system has no more threads.
    explicit ThreadPool(std::size_t threads);
    /// Not beside run().
    ~ThreadPool();
    ThreadPool(const ThreadPool&) = delete;
    ThreadPool& operator=(const ThreadPool&) = delete;

    std::size_t threads() const { return workers_.size() + 1; }

    /// Runs the phases of a plan in order. It has
    ///
    ///   std::size_t num_phases();
    ///   std::size_t num_chunks(std::size_t phase);  below 2^32
    ///   void run(std::size_t phase, std::size_t chunk, std::size_t thread);
    ///
    /// num_chunks is called once per phase, by any thread, when the phases before are through: what they have computed
    /// may decide. `thread` is 0 for the caller, else below threads(); no two chunks have the same at the same time.
    /// None of the three may throw (it would end the process) or use this pool. After the return no thread looks at the
    /// plan any more. Of several callers at once, one runs and the others wait.
    template <typename Plan>
    void run(Plan& plan) noexcept {
        const std::size_t num_phases = plan.num_phases();
        run({&plan, num_phases,
             [](void* p, std::size_t phase) noexcept { return static_cast<Plan*>(p)->num_chunks(phase); },
             [](void* p, std::size_t phase, std::size_t chunk, std::size_t thread) noexcept {
                 static_cast<Plan*>(p)->run(phase, chunk, thread);
             }});
    }

    /// A single phase: function(chunk, thread) for each chunk.
    template <typename Function>
    void for_each(std::size_t num_chunks, Function function) noexcept {
        struct Phase {
            std::size_t size;
            Function& call;
            std::size_t num_phases() const { return 1; }
            std::size_t num_chunks(std::size_t) const { return size; }
            void run(std::size_t, std::size_t chunk, std::size_t thread) { call(chunk, thread); }
        } phase{num_chunks, function};
        run(phase);
    }

private:
    /// A plan without its type.
    struct Work {
        void* plan;
        std::size_t num_phases;
        std::size_t (*num_chunks)(void* plan, std::size_t phase);
        void (*run)(void* plan, std::size_t phase, std::size_t chunk, std::size_t thread);
    };

    enum class State : std::uint32_t { kIdle, kRunning, kStopping };

    void run(const Work& work) noexcept;
    void work(std::size_t thread);
    void take_part(std::size_t thread);
    bool await_chunk() const;
    bool claim(std::uint32_t& chunk);
    void run_chunks(std::uint32_t chunk, std::size_t thread);
    bool finish_chunk();
    bool open_next_phase();
    void ring();
    void sleep_until_rung(std::uint32_t bell);
    void stop();

    // What changes hands with every phase, in one line of the cache.
    alignas(64) std::atomic<std::uint32_t> remaining_{0};  // chunks of the current phase that are not claimed
    std::atomic<std::uint32_t> unfinished_{0};             // and those not finished; unused if the phase has but one
    std::atomic<State> state_{State::kIdle};
    // From here on only for a thread that has claimed a chunk.
    std::uint32_t num_chunks_ = 0;
    std::size_t phase_ = 0;
    Work work_{};

    alignas(64) std::atomic<std::uint32_t> bell_{0};  // a number that ring() changes, shifted by one, and kAsleep
    std::mutex one_run_;
    std::vector<std::thread> workers_;
};

}  // namespace rbee::kernels
