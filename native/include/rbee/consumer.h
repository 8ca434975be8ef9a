// The server's side of the arena: hands out rings, drains them, and takes them back when they finish.
//
// Owns the order of draining. One thread only. Never blocks and never waits for the engine; a corrupted word in shared
// memory ends in a TransportError, not outside the mapping.

#pragma once

#include <vector>

#include "rbee/doorbell.h"
#include "rbee/layout.h"
#include "rbee/ready_bitmap.h"
#include "rbee/token_ring.h"
#include "rbee/wait_word.h"

namespace rbee {

/// What a drain shows of one ring: its new records in order, where the engine wrote them. Valid during the visit only.
class Records {
public:
    Records(const Record* ring, std::uint32_t capacity, std::uint32_t head, std::uint32_t size)
        : ring_(ring), mask_(capacity - 1), head_(head), size_(size) {}

    std::uint32_t size() const { return size_; }
    Record operator[](std::uint32_t i) const { return load_plain(ring_[(head_ + i) & mask_]); }

private:
    const Record* ring_;
    std::uint32_t mask_;
    std::uint32_t head_;
    std::uint32_t size_;
};

/// How a drain ended. `more`: drain again soon, no doorbell will ring. `needs_wake`: the engine sleeps, send it Wake.
struct DrainEnd {
    bool more;
    bool needs_wake;
};

/// What one drain found. The records of `rings[i]` end at `ends[i]` and start where those of the ring before end.
struct Drained {
    std::vector<std::uint32_t> rings;
    std::vector<std::uint32_t> ends;
    std::vector<FinishCode> finishes;
    std::vector<Record> records;
    bool more = false;
    bool needs_wake = false;

    /// Empties it; the memory stays, for the next drain.
    void clear() {
        rings.clear();
        ends.clear();
        finishes.clear();
        records.clear();
    }

    void add(std::uint32_t ring, const Records& found, FinishCode finish) {
        for (std::uint32_t i = 0; i < found.size(); ++i) {
            records.push_back(found[i]);
        }
        rings.push_back(ring);
        ends.push_back(static_cast<std::uint32_t>(records.size()));
        finishes.push_back(finish);
    }
};

/// What a drain does once it has found everything.
enum class Then { arm, keep_polling };

class Consumer {
public:
    struct Assigned {
        std::uint32_t ring;
        std::uint32_t generation;
    };

    /// The rings have had `generation` requests, which is 0 except in tests of the wrap-around.
    Consumer(const Arena& arena, int doorbell_fd, std::uint32_t generation = 0)
        : arena_(arena),
          doorbell_fd_(doorbell_fd),
          rings_(arena.geometry.num_rings),
          pending_(arena.ready_words()),
          paused_(arena.ready_words()),
          unbegun_(arena.ready_words()) {
        check_eventfd(doorbell_fd);
        // The free list is a stack: the ring that was used last is the one whose records, indices and page tables are
        // still in the caches, and few requests at a time stay within few rings, lines and bitmap words. (Time before
        // reuse protects nothing here; generations do.)
        free_.reserve(arena_.geometry.num_rings);
        for (std::uint32_t ring = arena_.geometry.num_rings; ring-- > 0;) {
            free_.push_back(ring);
            // Relaxed, no pair: only this side writes heads, and no engine has mapped this arena yet.
            rings_[ring].head = arena_.heads[ring].load(std::memory_order_relaxed);
            rings_[ring].generation = generation;
        }
    }

    /// Takes a free ring for one request; false when there is none. `queued_tokens` count in queued_tokens() until the
    /// ring has begun.
    bool assign(Assigned& assigned, std::uint64_t queued_tokens = 0) {
        if (free_.empty()) {
            return false;
        }
        assigned.ring = free_.back();
        free_.pop_back();
        Ring& mine = rings_[assigned.ring];
        mine.generation += mine.generation == UINT32_MAX ? 2 : 1;  // 0 is no generation
        mine.assigned = true;
        mine.queued_tokens = queued_tokens;
        queued_tokens_ += queued_tokens;
        unbegun_[assigned.ring / 64] |= bit(assigned.ring);
        assigned.generation = mine.generation;
        return true;
    }

    /// Cancels the ring's request; true if the engine sleeps and must be sent Wake.
    bool cancel(std::uint32_t ring) {
        Ring& mine = assigned_at(ring);
        begin(ring);
        if (mine.cancelled_ns == 0) {
            mine.cancelled_ns = monotonic_ns();
        }
        // Relaxed, no pair: no other load of the engine depends on it; take_waiting() orders it for a sleeping engine.
        arena_.cancel[ring].store(mine.generation, std::memory_order_relaxed);
        RBEE_CRASH_POINT(cancel_written);
        count(arena_.fixed->server.cancels);
        return take_engine_waiting();
    }

    /// From now on drain() leaves the ring's records where they are.
    void pause(std::uint32_t ring) {
        assigned_at(ring);
        paused_[ring / 64] |= bit(ring);
    }

    /// Ends pause(); true if the ring has something to drain already.
    bool resume(std::uint32_t ring) {
        assigned_at(ring);
        paused_[ring / 64] &= ~bit(ring);
        return (pending_[ring / 64] & bit(ring)) != 0;
    }

    /// After the engine's death: the next drains include every assigned ring, paused or not. The engine may have died
    /// between publishing a ring's tail and setting its ready bit, and there is nothing left to wait for.
    void expect_all() {
        for (std::uint32_t ring = 0; ring < arena_.geometry.num_rings; ++ring) {
            if (rings_[ring].assigned) {
                pending_[ring / 64] |= bit(ring);
                paused_[ring / 64] &= ~bit(ring);
            }
        }
    }

    bool is_paused(std::uint32_t ring) const { return (paused_[ring / 64] & bit(ring)) != 0; }

    /// Shows `visit(ring, records, finish)` up to `max_records` of what the engine published; finish is 0 unless the
    /// ring has ended with these records. Then arms the doorbell, unless the caller will drain again by itself.
    template <typename Visit>
    DrainEnd drain(std::size_t max_records, Then then, Visit&& visit) {
        if (max_records == 0) {
            throw std::invalid_argument("max_records is 0; a drain needs room for one record at least.");
        }
        suspicious_ = false;
        if (then == Then::arm) {
            silence(doorbell_fd_);
            RBEE_CRASH_POINT(eventfd_emptied);
        }
        seen_ = observe_doorbell(arena_.fixed->doorbell);
        for (std::size_t word = 0; word < pending_.size(); ++word) {
            const std::uint64_t ready = take_ready(arena_.ready[word]);
            pending_[word] |= ready;
            begin_paused(word, ready);
            RBEE_CRASH_POINT(ready_taken);
        }
        std::size_t taken = 0;
        const bool all = drain_pending(max_records, taken, visit);
        armed_ = all && then == Then::arm && arm_doorbell(arena_.fixed->doorbell, seen_);
        RBEE_CRASH_POINT(doorbell_armed);
        count(arena_.fixed->server.drains);
        count(arena_.fixed->server.tokens_drained, taken);
        return {!all || (then == Then::arm && !armed_), taken != 0 && take_engine_waiting()};
    }

    /// The same, copied out.
    void drain(std::size_t max_records, Drained& drained) {
        drained.clear();
        const DrainEnd end =
            drain(max_records, Then::arm, [&drained](std::uint32_t ring, const Records& records, FinishCode finish) {
                drained.add(ring, records, finish);
            });
        drained.more = end.more;
        drained.needs_wake = end.needs_wake;
    }

    /// For a server that polls: empties the eventfd, in case a step wrote it.
    void silence_doorbell() { silence(doorbell_fd_); }

    /// For a server that polls: true if there is a reason to drain, after at most `patience_ns` of looking: a step
    /// since the last drain, or rings that it left something in, because of its budget or because they were paused
    /// then.
    bool poll(std::uint64_t patience_ns) const {
        for (std::size_t word = 0; word < pending_.size(); ++word) {
            if ((pending_[word] & ~paused_[word]) != 0) {
                return true;
            }
        }
        const std::uint64_t start = monotonic_ns();
        while (!rung_since(arena_.fixed->doorbell, seen_)) {
            relax_processor();
            if (monotonic_ns() - start >= patience_ns) {
                return false;
            }
        }
        return true;
    }

    /// For a slow timer: true, and counted, if something was published behind an armed doorbell and the last call found
    /// it too. Then a wakeup was lost (or the engine stopped in the middle of a commit).
    bool find_stale() {
        // Relaxed, no pair: the drain that follows loads everything again in order.
        bool changed = (arena_.fixed->doorbell.word.load(std::memory_order_relaxed) & kArmed) == 0;
        for (std::uint32_t word = 0; word < arena_.ready_words(); ++word) {
            changed = changed || arena_.ready[word].load(std::memory_order_relaxed) != 0;
        }
        const bool stale = armed_ && changed && suspicious_;
        suspicious_ = armed_ && changed;
        if (stale) {
            count(arena_.fixed->server.stale_wakeups);
        }
        return stale;
    }

    /// When the engine began to run the ring's last request, CLOCK_MONOTONIC; 0 if it is not known to have.
    std::uint64_t start_ns(std::uint32_t ring) const {
        // Relaxed: load_tail() or load_finish() has ordered it, where anything came.
        return arena_.starts[ring].load(std::memory_order_relaxed);
    }

    /// For a ring just assigned: forgets its earlier request's start.
    void forget_start(std::uint32_t ring) {
        // Relaxed, no pair: the engine writes it only after the submission, which is a message.
        arena_.starts[ring].store(0, std::memory_order_relaxed);
    }

    std::uint32_t num_rings() const { return arena_.geometry.num_rings; }

    /// Throws unless a request has this ring.
    void check_assigned(std::uint32_t ring) { assigned_at(ring); }

    std::size_t in_use() const { return rings_.size() - free_.size(); }

    /// False from assign() until the engine has published anything for the ring, or its request was cancelled.
    bool has_begun(std::uint32_t ring) {
        assigned_at(ring);
        return (unbegun_[ring / 64] & bit(ring)) == 0;
    }

    /// The sum over the rings that have not begun.
    std::uint64_t queued_tokens() const { return queued_tokens_; }

    /// Heartbeat, for observers.
    void beat(std::uint32_t state) {
        ServerLines& line = arena_.fixed->server;
        set_gauge(line.state, state);
        set_gauge(line.rings_in_use, static_cast<std::uint32_t>(in_use()));
        set_gauge(line.heartbeat_ns, monotonic_ns());
    }

    /// The counters. Only the server's lines and histograms may be written here.
    FixedPart& fixed() const { return *arena_.fixed; }

private:
    struct Ring {
        std::uint32_t head = 0;
        std::uint32_t generation = 0;
        bool assigned = false;
        std::uint64_t queued_tokens = 0;  // in the sum, while the ring has not begun
        std::uint64_t cancelled_ns = 0;   // when its request was cancelled, if it was
    };

    static std::uint64_t bit(std::uint32_t ring) { return std::uint64_t{1} << ring % 64; }

    Ring& assigned_at(std::uint32_t ring) {
        if (ring >= arena_.geometry.num_rings || !rings_[ring].assigned) {
            throw std::invalid_argument("Ring " + std::to_string(ring) + " is not assigned to a request.");
        }
        return rings_[ring];
    }

    /// Harmless for a ring that has begun already.
    void begin(std::uint32_t ring) {
        if ((unbegun_[ring / 64] & bit(ring)) != 0) {
            unbegun_[ring / 64] &= ~bit(ring);
            queued_tokens_ -= rings_[ring].queued_tokens;
        }
    }

    /// A paused ring is not drained, so that its ready bit is the only sign. One that an earlier generation left behind
    /// is none: the tail or the finish must have changed too.
    void begin_paused(std::size_t word, std::uint64_t ready) {
        for (std::uint64_t bits = ready & paused_[word] & unbegun_[word]; bits != 0; bits &= bits - 1) {
            const auto ring = static_cast<std::uint32_t>(word * 64 + static_cast<std::size_t>(__builtin_ctzll(bits)));
            if (load_finish(arena_.finish[ring], rings_[ring].generation) != 0 ||
                load_tail(arena_.tails[ring]) != rings_[ring].head) {
                begin(ring);
            }
        }
    }

    void give_back(std::uint32_t ring) {
        rings_[ring].assigned = false;
        pending_[ring / 64] &= ~bit(ring);
        paused_[ring / 64] &= ~bit(ring);
        free_.push_back(ring);
    }

    bool take_engine_waiting() {
        const bool waiting = take_waiting(arena_.fixed->wait);
        if (waiting) {
            RBEE_CRASH_POINT(sleep_taken);
            count(arena_.fixed->server.engine_wakes);
        }
        return waiting;
    }

    /// True if nothing but paused rings is left. Goes on behind the ring where the last budget ended, so that a turn's
    /// budget cannot starve the rings with high numbers.
    template <typename Visit>
    bool drain_pending(std::size_t budget, std::size_t& taken, Visit&& visit) {
        const std::size_t words = pending_.size();
        const std::size_t first = next_ / 64;
        const std::uint64_t from_next = ~std::uint64_t{0} << next_ % 64;
        for (std::size_t turn = 0; turn <= words; ++turn) {
            const std::size_t word = (first + turn) % words;
            // The first word comes twice: its upper part at the start, its lower part at the end.
            const std::uint64_t part = turn == 0 ? from_next : turn == words ? ~from_next : ~std::uint64_t{0};
            const std::uint64_t wanted = pending_[word] & ~paused_[word] & part;
            prefetch(word, wanted);
            for (std::uint64_t bits = wanted; bits != 0; bits &= bits - 1) {
                const auto lowest = static_cast<std::size_t>(__builtin_ctzll(bits));
                const auto ring = static_cast<std::uint32_t>(word * 64 + lowest);
                const std::size_t before = taken;
                if (!drain_ring(ring, budget - before, taken, visit)) {
                    // A ring that got nothing because the budget was spent is the first of the next turn.
                    next_ = (ring + (taken > before ? 1 : 0)) % arena_.geometry.num_rings;
                    return false;
                }
            }
        }
        return true;
    }

    /// The engine's core has these records in its cache: fetching them one after the other is most of a drain's time.
    void prefetch(std::size_t word, std::uint64_t bits) const {
        for (; bits != 0; bits &= bits - 1) {
            const auto ring = static_cast<std::uint32_t>(word * 64 + static_cast<std::size_t>(__builtin_ctzll(bits)));
            __builtin_prefetch(arena_.ring(ring) + (rings_[ring].head & (arena_.geometry.ring_capacity - 1)));
        }
    }

    /// True if the ring is empty afterwards.
    template <typename Visit>
    bool drain_ring(std::uint32_t ring, std::size_t budget, std::size_t& total, Visit&& visit) {
        Ring& mine = rings_[ring];
        // The finish word first: if it is there, the tail loaded after it is the last one.
        const FinishCode finish = load_finish(arena_.finish[ring], mine.generation);
        const std::uint32_t tail = load_tail(arena_.tails[ring]);
        const std::uint32_t capacity = arena_.geometry.ring_capacity;
        const std::uint32_t available = records_between(mine.head, tail, capacity, ring);
        const std::uint32_t taken = available < budget ? available : static_cast<std::uint32_t>(budget);
        const bool emptied = taken == available;
        const bool ended = emptied && finish != 0 && mine.assigned;
        if (available != 0 && !mine.assigned) {
            throw TransportError("Corrupt ring " + std::to_string(ring) +
                                 ": it has records but is assigned to no request; the engine must be replaced.");
        }
        if (taken != 0 || ended) {
            begin(ring);
            visit(ring, Records(arena_.ring(ring), capacity, mine.head, taken), ended ? finish : FinishCode{0});
            RBEE_CRASH_POINT(records_shown);
        }
        if (taken != 0) {
            total += taken;
            mine.head += taken;
            publish_head(arena_.heads[ring], mine.head);
        }
        if (emptied) {
            pending_[ring / 64] &= ~bit(ring);
        }
        if (ended) {
            count(arena_.fixed->server.finishes);
            if (mine.cancelled_ns != 0) {
                arena_.fixed->histograms.cancel_to_free.add(monotonic_ns() - mine.cancelled_ns);
                mine.cancelled_ns = 0;
            }
            give_back(ring);
        }
        return emptied;
    }

    Arena arena_;
    int doorbell_fd_;
    std::vector<Ring> rings_;
    std::vector<std::uint32_t> free_;
    std::vector<std::uint64_t> pending_;  // rings to look at: taken from the ready bitmap, not yet found empty
    std::vector<std::uint64_t> paused_;
    std::vector<std::uint64_t> unbegun_;  // assigned rings that the engine has published nothing for
    std::uint64_t queued_tokens_ = 0;
    std::size_t next_ = 0;
    std::uint64_t seen_ = 0;   // the doorbell, as the last drain found it
    bool armed_ = true;        // as the arena was formatted
    bool suspicious_ = false;  // find_stale() saw something that may be a commit in progress
};

}  // namespace rbee
