// The engine's side of the arena: opens rings for submissions and publishes one step after the other.
//
// Owns the order of publishing. One thread only. Never blocks and never waits for the server; a corrupted word in
// shared memory ends in a TransportError, not outside the mapping.

#pragma once

#include <vector>

#include "rbee/doorbell.h"
#include "rbee/layout.h"
#include "rbee/ready_bitmap.h"
#include "rbee/token_ring.h"
#include "rbee/wait_word.h"

namespace rbee {

/// What one step sampled, as parallel arrays that the caller owns. A ring may occur several times in `rings`, and its
/// tokens keep their order; `finished` names the rings that end with this step, after their tokens, and `finishes` how.
struct Step {
    std::size_t num_tokens;
    const std::uint32_t* rings;
    const std::uint32_t* tokens;
    const float* logprobs;
    std::size_t num_finished;
    const std::uint32_t* finished;
    const FinishCode* finishes;
};

/// The engine's gauges between two steps.
struct EngineGauges {
    std::uint32_t sequences_running;
    std::uint32_t sequences_waiting;
    std::uint32_t kv_blocks;
    std::uint32_t kv_blocks_used;
    std::uint64_t preemptions;
    std::uint64_t prompt_tokens;
    std::uint64_t cached_prompt_tokens;
};

class Producer {
public:
    Producer(const Arena& arena, int doorbell_fd)
        : arena_(arena), doorbell_fd_(doorbell_fd), rings_(arena.geometry.num_rings), ready_(arena.ready_words()) {
        check_eventfd(doorbell_fd);
        // Relaxed, no pair: only this side writes these words now; the server formatted them before it sent the name.
        for (std::uint32_t ring = 0; ring < arena_.geometry.num_rings; ++ring) {
            rings_[ring].tail = arena_.tails[ring].load(std::memory_order_relaxed);
            rings_[ring].head = rings_[ring].tail;
        }
        sequence_ = arena_.fixed->doorbell.word.load(std::memory_order_relaxed) >> 1;
        arena_.fixed->engine.pid.store(process_id(), std::memory_order_relaxed);
        RBEE_CRASH_POINT(producer_made);
    }

    /// From now on the ring belongs to `generation`, and commit() may write to it.
    void open(std::uint32_t ring, std::uint32_t generation) {
        Ring& mine = at(ring);
        if (generation == 0) {
            throw std::invalid_argument("generation is 0; generations count from 1.");
        }
        if (mine.generation != 0) {
            throw TransportError("Ring " + std::to_string(ring) + " is still open for generation " +
                                 std::to_string(mine.generation) + "; it must finish before it opens again.");
        }
        if (used(ring) != 0) {
            throw TransportError("Ring " + std::to_string(ring) + " was submitted for generation " +
                                 std::to_string(generation) + " but still holds records of an earlier one.");
        }
        // Relaxed, no pair: only observers of the segment read it.
        arena_.generations[ring].store(generation, std::memory_order_relaxed);
        RBEE_CRASH_POINT(ring_opened);
        mine.generation = generation;
        mine.cancel_reported = false;
        mine.was_full = false;
        ++num_open_;
    }

    /// The ring's request begins to run now.
    void note_start(std::uint32_t ring) {
        open_at(ring);
        // Relaxed: the server reads it behind the tail or finish that comes later; before, it may miss it.
        arena_.starts[ring].store(monotonic_ns(), std::memory_order_relaxed);
        RBEE_CRASH_POINT(start_written);
    }

    /// Records that fit into the ring now.
    std::uint32_t free_space(std::uint32_t ring) {
        Ring& mine = at(ring);
        const std::uint32_t space = arena_.geometry.ring_capacity - used(ring);
        if (space == 0 && !mine.was_full) {
            count(arena_.fixed->engine.full_ring_pauses);
        }
        mine.was_full = space == 0;
        return space;
    }

    /// Publishes a step and returns its commit time. Throws before it changes anything if the step cannot be published.
    std::uint64_t commit(const Step& step) {
        check(step);
        const std::uint64_t now = monotonic_ns();
        if (step.num_tokens == 0 && step.num_finished == 0) {
            return now;
        }
        RBEE_CRASH_POINT(commit_begun);
        if (waiting_) {
            set_waiting(arena_.fixed->wait, false);
            RBEE_CRASH_POINT(sleep_withdrawn);
            waiting_ = false;
        }
        write_records(step, now);
        publish_tails(step);
        publish_finishes(step);
        for (std::size_t word = 0; word < ready_.size(); ++word) {
            if (ready_[word] != 0) {
                mark_ready(arena_.ready[word], ready_[word]);
                ready_[word] = 0;
            }
        }
        EngineLine& counters = arena_.fixed->engine;
        count(counters.steps);
        count(counters.tokens, num_outputs(step));
        if (ring_doorbell(arena_.fixed->doorbell, ++sequence_)) {
            RBEE_CRASH_POINT(rung_asleep);
            count(counters.wakes_written);
            wake(doorbell_fd_);
            RBEE_CRASH_POINT(eventfd_written);
            // The kernel tends to put a woken process on the core of its waker. There the server would wait until this
            // process sleeps, all through the next step's preparation: most of a wakeup's time (bench_delivery).
            give_way();
        } else {
            RBEE_CRASH_POINT(rung_awake);
            count(counters.wakes_elided);
        }
        return now;
    }

    /// Appends the open rings whose cancel word names their generation, each once per generation.
    void take_cancelled(std::vector<std::uint32_t>& cancelled) {
        for (std::uint32_t ring = 0; num_open_ != 0 && ring < arena_.geometry.num_rings; ++ring) {
            Ring& mine = rings_[ring];
            // Relaxed, no pair: no other load depends on it; the wait word orders it for a sleeping engine.
            if (mine.generation != 0 && !mine.cancel_reported &&
                arena_.cancel[ring].load(std::memory_order_relaxed) == mine.generation) {
                mine.cancel_reported = true;
                cancelled.push_back(ring);
            }
        }
    }

    /// Before sleeping: from now on a cancel, or space in a ring, makes the server send Wake. The caller checks both
    /// once more before it sleeps. Announces nothing without an open ring, where neither can happen.
    void arm_wait() {
        waiting_ = num_open_ != 0;
        set_waiting(arena_.fixed->wait, waiting_);
        if (waiting_) {
            RBEE_CRASH_POINT(sleep_announced);
        }
    }

    /// Heartbeat, for the server's watchdog.
    void beat(std::uint32_t state) {
        set_gauge(arena_.fixed->engine.state, state);
        set_gauge(arena_.fixed->engine.heartbeat_ns, monotonic_ns());
    }

    /// See progress.h.
    Word<std::uint64_t>& progress() { return arena_.fixed->engine.progress; }

    /// The histograms. Only the engine's may be written here.
    Histograms& histograms() const { return arena_.fixed->histograms; }

    /// Sets the gauges and counts the duration of a step, for observers; `step_ns` 0: there was no step.
    void report(std::uint64_t step_ns, const EngineGauges& gauges) {
        EngineLine& line = arena_.fixed->engine;
        set_gauge(line.sequences_running, gauges.sequences_running);
        set_gauge(line.sequences_waiting, gauges.sequences_waiting);
        set_gauge(line.kv_blocks, gauges.kv_blocks);
        set_gauge(line.kv_blocks_used, gauges.kv_blocks_used);
        set_gauge(line.preemptions, gauges.preemptions);
        set_gauge(line.prompt_tokens, gauges.prompt_tokens);
        set_gauge(line.cached_prompt_tokens, gauges.cached_prompt_tokens);
        if (step_ns != 0) {
            arena_.fixed->histograms.step.add(step_ns);
        }
    }

private:
    /// What this side keeps of a ring in memory of its own.
    struct Ring {
        std::uint32_t tail = 0;
        std::uint32_t head = 0;        // as last loaded: it may have grown since
        std::uint32_t generation = 0;  // 0: closed
        std::uint32_t staged = 0;      // records of the step that is being committed
        bool ending = false;           // by the step that is being committed
        bool cancel_reported = false;
        bool was_full = false;
    };

    Ring& at(std::uint32_t ring) {
        if (ring >= arena_.geometry.num_rings) {
            throw std::invalid_argument("ring is " + std::to_string(ring) + " but the arena has " +
                                        std::to_string(arena_.geometry.num_rings) + " rings.");
        }
        return rings_[ring];
    }

    Ring& open_at(std::uint32_t ring) {
        Ring& mine = at(ring);
        if (mine.generation == 0) {
            throw TransportError("Ring " + std::to_string(ring) + " is not open; open() it when its submission comes.");
        }
        return mine;
    }

    std::uint32_t used(std::uint32_t ring) {
        Ring& mine = rings_[ring];
        const std::uint32_t head = load_head(arena_.heads[ring]);
        const std::uint32_t records = records_between(head, mine.tail, arena_.geometry.ring_capacity, ring);
        mine.head = head;  // only now that it has been checked: commit() uses it unchecked
        return records;
    }

    void check(const Step& step) {
        const std::uint32_t mask = arena_.geometry.ring_capacity - 1;
        try {
            for (std::size_t i = 0; i < step.num_tokens; ++i) {
                const std::uint32_t ring = step.rings[i];
                Ring& mine = open_at(ring);
                // The server's core has this record's line: it comes over while the rest of the step is checked.
                __builtin_prefetch(arena_.ring(ring) + ((mine.tail + mine.staged) & mask), 1);
                ++mine.staged;
                // The server's line is read only when the ring would be full with the head that was loaded last.
                if (mine.tail - mine.head + mine.staged > arena_.geometry.ring_capacity &&
                    used(ring) + mine.staged > arena_.geometry.ring_capacity) {
                    throw TransportError("Ring " + std::to_string(ring) + " is full; ask free_space() before a step.");
                }
            }
            for (std::size_t i = 0; i < step.num_finished; ++i) {
                Ring& mine = open_at(step.finished[i]);
                if (mine.ending || reason_of(step.finishes[i]) == 0) {
                    throw std::invalid_argument(
                        "Ring " + std::to_string(step.finished[i]) +
                        (mine.ending ? " finishes twice in one step." : " finishes with reason 0, which means 'not'."));
                }
                mine.ending = true;
            }
        } catch (...) {
            forget(step);
            throw;
        }
    }

    void forget(const Step& step) {
        for (std::size_t i = 0; i < step.num_tokens && step.rings[i] < rings_.size(); ++i) {
            rings_[step.rings[i]].staged = 0;
        }
        for (std::size_t i = 0; i < step.num_finished && step.finished[i] < rings_.size(); ++i) {
            rings_[step.finished[i]].ending = false;
        }
    }

    void write_records(const Step& step, std::uint64_t now) {
        const std::uint32_t mask = arena_.geometry.ring_capacity - 1;
        for (std::size_t i = 0; i < step.num_tokens; ++i) {
            const std::uint32_t ring = step.rings[i];
            const std::uint32_t index = rings_[ring].tail++ & mask;
            store_plain(arena_.ring(ring)[index], Record{step.tokens[i], step.logprobs[i], now});
            RBEE_CRASH_POINT(record_written);
        }
    }

    /// The step's tokens without its side records.
    static std::uint64_t num_outputs(const Step& step) {
        std::uint64_t outputs = 0;
        for (std::size_t i = 0; i < step.num_tokens; ++i) {
            outputs += (step.tokens[i] & kSideRecord) == 0;
        }
        return outputs;
    }

    void publish_tails(const Step& step) {
        for (std::size_t i = 0; i < step.num_tokens; ++i) {
            const std::uint32_t ring = step.rings[i];
            Ring& mine = rings_[ring];
            if (mine.staged != 0) {  // not yet published by an earlier entry of this step
                mine.staged = 0;
                publish_tail(arena_.tails[ring], mine.tail);
                ready_[ring / 64] |= std::uint64_t{1} << ring % 64;
            }
        }
    }

    void publish_finishes(const Step& step) {
        for (std::size_t i = 0; i < step.num_finished; ++i) {
            const std::uint32_t ring = step.finished[i];
            Ring& mine = rings_[ring];
            publish_finish(arena_.finish[ring], mine.generation, step.finishes[i]);
            ready_[ring / 64] |= std::uint64_t{1} << ring % 64;
            mine.generation = 0;
            mine.ending = false;
            --num_open_;
        }
    }

    Arena arena_;
    int doorbell_fd_;
    std::vector<Ring> rings_;
    std::vector<std::uint64_t> ready_;  // bits of the step that is being committed
    std::uint64_t sequence_ = 0;
    std::uint32_t num_open_ = 0;
    bool waiting_ = false;
};

}  // namespace rbee
